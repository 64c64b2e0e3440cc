//! Compares the readiness of every kind of descriptor that a client may hand over with poll(2) on
//! the same descriptor.

use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use proptest::test_runner::{Config, TestRunner};
use rustix::event::{PollFd, PollFlags, epoll};
use rustix::net::{SendFlags, Shutdown, sockopt};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::*;

/// More bytes than any descriptor takes before it is full. A UDP socket never is full.
const FILL_MAX: usize = 16 << 20;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Unix,
    UnixDatagrams,
    UnixPackets,
    Tcp,
    TcpUnconnected,
    TcpRefused,
    TcpListener,
    Udp,
    PipeReader,
    PipeWriter,
    PtyMaster,
    PtySlave,
    /// A pipe opened for reading and writing, as is possible with a FIFO.
    PipeBoth,
    EventFd,
    /// An epoll instance that waits for an eventfd.
    Epoll,
}

impl Kind {
    /// Returns whether an action on one end shows on the other end at once.
    const fn is_prompt(self) -> bool {
        !matches!(
            self,
            Self::Tcp
                | Self::TcpUnconnected
                | Self::TcpRefused
                | Self::TcpListener
                | Self::Udp
                | Self::PtyMaster
                | Self::PtySlave
        )
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Writes until there is no room.
    Fill,
    /// Reads until no bytes are left.
    Drain,
    WeShutDown(bool),
    PeerWrites(usize),
    /// The peer sends a byte out of band, which poll(2) reports as POLLPRI only.
    PeerUrges,
    PeerDrains,
    PeerShutsDown(bool),
    PeerCloses,
    /// The peer resets the connection, as the kernel does for a killed process that has not read
    /// all bytes.
    PeerResets,
    /// Sets which directions (read, write) are armed from here on.
    Arm(bool, bool),
}

fn programs() -> impl Strategy<Value = (Kind, Vec<Step>)> {
    let kind = prop_oneof![
        2 => Just(Kind::Unix),
        1 => Just(Kind::UnixDatagrams),
        1 => Just(Kind::UnixPackets),
        2 => Just(Kind::Tcp),
        1 => Just(Kind::TcpUnconnected),
        1 => Just(Kind::TcpRefused),
        1 => Just(Kind::TcpListener),
        1 => Just(Kind::Udp),
        2 => Just(Kind::PipeReader),
        2 => Just(Kind::PipeWriter),
        2 => Just(Kind::PtyMaster),
        2 => Just(Kind::PtySlave),
        1 => Just(Kind::PipeBoth),
        1 => Just(Kind::EventFd),
        1 => Just(Kind::Epoll),
    ];
    let step = prop_oneof![
        2 => Just(Step::Fill),
        2 => Just(Step::Drain),
        1 => any::<bool>().prop_map(Step::WeShutDown),
        3 => (1..3000_usize).prop_map(Step::PeerWrites),
        1 => Just(Step::PeerUrges),
        2 => Just(Step::PeerDrains),
        2 => any::<bool>().prop_map(Step::PeerShutsDown),
        1 => Just(Step::PeerCloses),
        1 => Just(Step::PeerResets),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(read, write)| Step::Arm(read, write)),
    ];
    (kind, prop::collection::vec(step, 1..12))
}

fn nonblocking(fd: impl Into<OwnedFd>) -> OwnedFd {
    let fd = fd.into();
    let flags = fcntl_getfl(&fd).unwrap();
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).unwrap();
    fd
}

/// Opens a terminal in raw mode.
fn terminal() -> (OwnedFd, OwnedFd) {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    let mut raw = tcgetattr(&slave).unwrap();
    raw.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &raw).unwrap();
    (master, slave)
}

fn unix_pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn tcp() -> OwnedFd {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap()
}

fn ends(kind: Kind) -> (OwnedFd, OwnedFd) {
    match kind {
        Kind::Unix => {
            let (ours, peer) = UnixStream::pair().unwrap();
            (ours.into(), peer.into())
        }
        Kind::UnixDatagrams => unix_pair(SocketType::DGRAM),
        Kind::UnixPackets => unix_pair(SocketType::SEQPACKET),
        Kind::TcpUnconnected => (tcp(), tcp()),
        Kind::TcpRefused => {
            // The address stays bound, so that no other test listens there.
            let nobody = tcp();
            rustix::net::bind(&nobody, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
            let ours = tcp();
            let _ = rustix::net::connect(&ours, &rustix::net::getsockname(&nobody).unwrap());
            (ours, nobody)
        }
        Kind::TcpListener => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.into(), peer.into())
        }
        Kind::Udp => {
            let [ours, peer] =
                [(), ()].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
            ours.connect(peer.local_addr().unwrap()).unwrap();
            peer.connect(ours.local_addr().unwrap()).unwrap();
            (ours.into(), peer.into())
        }
        Kind::Tcp => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (ours.into(), listener.accept().unwrap().0.into())
        }
        Kind::PipeReader => blocking_pipe(),
        Kind::PipeWriter => {
            let (reader, writer) = blocking_pipe();
            (writer, reader)
        }
        Kind::PipeBoth => {
            let (reader, writer) = blocking_pipe();
            let link = format!("/proc/self/fd/{}", reader.as_raw_fd());
            let both = rustix::fs::open(link, OFlags::RDWR, rustix::fs::Mode::empty()).unwrap();
            (both, writer)
        }
        Kind::EventFd => {
            let counter = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            (counter.try_clone().unwrap(), counter)
        }
        Kind::Epoll => {
            let counter = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
            let data = epoll::EventData::new_u64(0);
            epoll::add(&epoll, &counter, data, epoll::EventFlags::IN).unwrap();
            (epoll, counter)
        }
        Kind::PtyMaster => terminal(),
        Kind::PtySlave => {
            let (master, slave) = terminal();
            (slave, master)
        }
    }
}

fn fill(fd: &OwnedFd, mut left: usize) {
    while left > 0
        && let Ok(len) = rustix::io::write(fd, &[7; 4096][..left.min(4096)])
    {
        left -= len;
    }
}

fn drain(fd: &OwnedFd) {
    while rustix::io::read(fd, &mut [0; 4096]).is_ok_and(|len| len > 0) {}
}

fn shut_down(fd: &OwnedFd, writing: bool) {
    let how = if writing {
        Shutdown::Write
    } else {
        Shutdown::Read
    };
    // Fails for descriptors that are not sockets.
    let _ = rustix::net::shutdown(fd, how);
}

/// Returns the result of poll(2) in the rig's words; `None` if the descriptor is not ready.
fn expected(fd: &OwnedFd, read: bool) -> Option<String> {
    let wanted = if read {
        PollFlags::IN | PollFlags::RDHUP
    } else {
        PollFlags::OUT
    };
    let mut fds = [PollFd::new(fd, wanted)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    rustix::event::poll(&mut fds, Some(&now)).unwrap();
    let found = fds[0].revents();
    let ended = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    let words = [
        (read && found.intersects(PollFlags::IN | ended), "readable"),
        (
            !read && found.intersects(PollFlags::OUT | PollFlags::ERR),
            "writable",
        ),
        (found.contains(PollFlags::HUP), "hangup"),
        (found.contains(PollFlags::RDHUP), "half-closed"),
        (found.contains(PollFlags::ERR), "error"),
    ];
    let words: Vec<_> = words
        .iter()
        .filter_map(|(is, w)| is.then_some(*w))
        .collect();
    (!found.is_empty()).then(|| words.join("+"))
}

struct Watched<'a> {
    rig: &'a mut Rig,
    ours: OwnedFd,
    source: SourceId,
    armed: [bool; 2],
    /// The number of the live operation in each direction: read, write.
    live: [Option<u32>; 2],
    last: u32,
}

impl Watched<'_> {
    fn expected(&self) -> [Option<String>; 2] {
        [expected(&self.ours, true), expected(&self.ours, false)]
    }

    /// Waits until poll(2) gives the same result repeatedly: TCP and terminals pass actions on with
    /// a delay.
    fn settle(&self) {
        let mut same = 0;
        let mut before = self.expected();
        while same < 10 {
            std::thread::sleep(Duration::from_millis(1));
            let now = self.expected();
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
    }

    /// Returns whether something is still to be reported, by what poll(2) found.
    fn waits(&self, found: &[Option<String>; 2]) -> bool {
        [0, 1].into_iter().any(|lane| {
            let told = self.armed[lane] && found[lane].is_none();
            self.live[lane].is_some() && !told
        })
    }

    /// Arms directions and checks that exactly the readiness that poll(2) finds is reported.
    fn check(&mut self) -> Result<(), TestCaseError> {
        for (lane, op) in [(0, READ), (1, WRITE)] {
            match self.live[lane] {
                None if self.armed[lane] => {
                    self.last += 1;
                    self.live[lane] = Some(self.last);
                    self.rig.driver.start(id(self.last), self.source, op);
                }
                Some(number) if !self.armed[lane] => {
                    self.rig.driver.cancel(id(number), self.source);
                }
                _ => {}
            }
        }
        let mut before = self.expected();
        let began = Instant::now();
        while self.waits(&before) {
            prop_assert!(began.elapsed() < PATIENCE, "nothing of {before:?}");
            self.turn(&before, Duration::from_millis(100))?;
            // On a busy host a terminal may pass an action on after it seemed to be settled.
            if self.expected() != before {
                self.settle();
                before = self.expected();
            }
        }
        self.turn(&before, Duration::ZERO)
    }

    fn end(mut self) {
        for number in self.live.into_iter().flatten() {
            self.rig.driver.cancel(id(number), self.source);
        }
        while self.live != [None, None] {
            for completion in self.rig.turn(PATIENCE, AMPLE) {
                let number = Some(completion.id.watch.slot);
                self.live = self.live.map(|live| live.filter(|_| live != number));
            }
        }
        self.rig.driver.detach(self.source);
    }

    fn turn(&mut self, before: &[Option<String>; 2], wait: Duration) -> Result<(), TestCaseError> {
        for completion in self.rig.turn(wait, AMPLE) {
            let number = completion.id.watch.slot;
            let lane = usize::from(self.live[1] == Some(number));
            prop_assert_eq!(self.live[lane].take(), Some(number));
            if !self.armed[lane] {
                continue;
            }
            let said = words(&completion);
            // The readiness may have changed since `before`.
            let now = self.expected();
            let matches = [&before[lane], &now[lane]].into_iter().flatten();
            let mut matches = matches.map(|what| format!("{number} {what}."));
            prop_assert!(
                matches.any(|what| what == said),
                "{said}: {before:?}, {now:?}"
            );
        }
        Ok(())
    }
}

pub(super) fn readiness_is_what_poll_says(rig: &mut Rig) {
    let mut last = 0;
    let config = Config {
        cases: 200,
        failure_persistence: None,
        // A failure by silence takes `PATIENCE` for every shrink step.
        max_shrink_iters: 4,
        ..Config::default()
    };
    let rig = std::cell::RefCell::new(rig);
    let last = std::cell::RefCell::new(&mut last);
    let run = |(kind, steps): (Kind, Vec<Step>)| {
        let (mut rig, mut last) = (rig.borrow_mut(), last.borrow_mut());
        let (ours, peer) = ends(kind);
        let (ours, mut peer) = (nonblocking(ours), Some(nonblocking(peer)));
        let source = rig.attach(ours.try_clone().unwrap(), Nonblocking::ReadinessOnly);
        let mut watched = Watched {
            rig: &mut rig,
            ours,
            source,
            armed: [true, true],
            live: [None, None],
            last: **last,
        };
        let result = (|| {
            watched.check()?;
            for step in steps {
                match (step, &peer) {
                    (Step::Fill, _) => fill(&watched.ours, FILL_MAX),
                    (Step::Drain, _) => drain(&watched.ours),
                    (Step::WeShutDown(writing), _) => shut_down(&watched.ours, writing),
                    (Step::PeerWrites(len), Some(peer)) => fill(peer, len),
                    (Step::PeerUrges, Some(peer)) => {
                        // Fails for descriptors other than stream sockets.
                        let _ = rustix::net::send(peer, b"!", SendFlags::OOB);
                    }
                    (Step::PeerDrains, Some(peer)) => drain(peer),
                    (Step::PeerShutsDown(writing), Some(peer)) => shut_down(peer, writing),
                    (Step::PeerResets, Some(socket)) => {
                        // Fails for descriptors that are not sockets.
                        let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
                        peer = None;
                    }
                    (Step::PeerCloses, _) => peer = None,
                    (Step::Arm(read, write), _) => watched.armed = [read, write],
                    (_, None) => {}
                }
                if !kind.is_prompt() {
                    watched.settle();
                }
                watched.check()?;
            }
            Ok(())
        })();
        **last = watched.last;
        watched.end();
        result
    };
    TestRunner::new(config).run(&programs(), run).unwrap();
}
