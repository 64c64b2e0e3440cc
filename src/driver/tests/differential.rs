//! The same program gives the same results on every backend.

use std::collections::{BTreeMap, VecDeque};
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};

use proptest::test_runner::{Config, TestRunner};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::*;
use crate::sys::{self, Launch, Origin, Place, idle_child};

const PEERS: usize = 3;
/// More sources, of which the driver only tells whether they are ready; their watch itself does what
/// there is to do: datagram sockets of Unix and of UDP, the master of a pseudoterminal, and the pidfd of
/// a process, which ends when its peer closes.
const PTY: usize = PEERS + 2;
const PROCESS: usize = PTY + 1;
/// A socket that connects; its peer is the listener that it connects to.
const DIALLED: usize = PROCESS + 1;
/// A listening socket; it has many peers.
const LISTENER: usize = DIALLED + 1;
const SOURCES: usize = LISTENER + 1;
/// More than any write to a terminal. Only in its first 4 KiB the room of a terminal does not depend on
/// when the kernel passes on what was written.
const TYPED_MAX: usize = 100;

#[derive(Debug, Clone)]
enum Step {
    Ready(usize, bool),
    Recv(usize, u32),
    Send(usize, usize),
    Cancel(usize, bool),
    PeerWrites(usize, usize),
    PeerReads(usize),
    PeerCloses(usize),
    OwnReceives(usize),
    OwnSends(usize, usize),
    /// Waits until the process is reaped.
    HangUp,
    Reap,
    Connect,
    Accept(u32),
    ClientConnects,
    ClientCloses,
}

fn step() -> impl Strategy<Value = Step> {
    let stream = prop_oneof![4 => 0..PEERS, 1 => Just(DIALLED)];
    let any_peer = 0..SOURCES;
    let own = PEERS..PROCESS;
    prop_oneof![
        4 => (any_peer.clone(), any::<bool>()).prop_map(|(peer, read)| Step::Ready(peer, read)),
        3 => (stream.clone(), 1..5000_u32).prop_map(|(peer, max)| Step::Recv(peer, max)),
        3 => (stream, 1..300_000_usize).prop_map(|(peer, len)| Step::Send(peer, len)),
        2 => (any_peer.clone(), any::<bool>()).prop_map(|(peer, read)| Step::Cancel(peer, read)),
        4 => (any_peer.clone(), 0..20_000_usize).prop_map(|(peer, len)| Step::PeerWrites(peer, len)),
        2 => any_peer.clone().prop_map(Step::PeerReads),
        1 => any_peer.prop_map(Step::PeerCloses),
        2 => own.clone().prop_map(Step::OwnReceives),
        2 => (own, 0..20_000_usize).prop_map(|(peer, len)| Step::OwnSends(peer, len)),
        1 => Just(Step::HangUp),
        1 => Just(Step::Reap),
        2 => Just(Step::Connect),
        2 => (1..4_u32).prop_map(Step::Accept),
        4 => Just(Step::ClientConnects),
        1 => Just(Step::ClientCloses),
    ]
}

/// The results of each operation. Data is joined, because its division into pieces is not promised.
type History = BTreeMap<u32, String>;

struct World {
    rig: Rig,
    sources: Vec<SourceId>,
    peers: Vec<Option<OwnedFd>>,
    /// The process; it ends when its standard input does.
    process: Pid,
    /// Where the listener of [`DIALLED`] and [`LISTENER`] listen.
    addresses: [SocketAddr; 2],
    /// The peers of [`LISTENER`], and those of its connections that were accepted.
    clients: VecDeque<UnixStream>,
    accepted: BTreeMap<u32, Vec<OwnedFd>>,
    live: BTreeMap<(usize, bool), u32>,
    bytes: BTreeMap<u32, Vec<u8>>,
    history: History,
}

impl World {
    /// Attaches one socket, one pipe to read from and one pipe to write to, two datagram sockets, a
    /// terminal, a process, a socket that can connect, and a listener.
    fn new(mut rig: Rig) -> Self {
        let (socket, peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        let (reader, writes) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let (reads, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let (unix, unix_peer) = UnixDatagram::pair().unwrap();
        let [udp, udp_peer] = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        udp.connect(udp_peer.local_addr().unwrap()).unwrap();
        udp_peer.connect(udp.local_addr().unwrap()).unwrap();
        unix_peer.set_nonblocking(true).unwrap();
        udp_peer.set_nonblocking(true).unwrap();
        let (master, slave) = raw_terminal();
        let (input, process, pidfd) = process();
        let (called, dial_address) = listener();
        let (listener, address) = listener();
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let dialled = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let sources = vec![
            rig.attach(socket, Nonblocking::Socket),
            rig.attach(reader, Nonblocking::Own),
            rig.attach(writer, Nonblocking::Pipe),
            rig.attach(unix, Nonblocking::Socket),
            rig.attach(udp, Nonblocking::Socket),
            rig.attach(master, Nonblocking::Own),
            rig.attach(pidfd, Nonblocking::Own),
            rig.attach(dialled, Nonblocking::Own),
            rig.attach(listener, Nonblocking::Own),
        ];
        let peers: [OwnedFd; LISTENER] = [
            peer.into(),
            writes,
            reads,
            unix_peer.into(),
            udp_peer.into(),
            slave,
            input,
            called.into(),
        ];
        Self {
            rig,
            sources,
            peers: peers.map(Some).into_iter().chain([None]).collect(),
            process,
            addresses: [dial_address, address],
            clients: VecDeque::new(),
            accepted: BTreeMap::new(),
            live: BTreeMap::new(),
            bytes: BTreeMap::new(),
            history: History::new(),
        }
    }

    /// Does one step and takes turns until all its results are there.
    fn apply(&mut self, number: u32, step: &Step) {
        match *step {
            Step::Ready(peer, read) => self.start(number, peer, if read { READ } else { WRITE }),
            Step::Recv(peer, max) => self.start(
                number,
                peer,
                Op::Recv {
                    max,
                    offset: Offset::at(0),
                },
            ),
            Step::Send(peer, len) => {
                self.start(number, peer, send(vec![1; len].into()));
            }
            Step::Cancel(peer, read) => {
                if let Some(live) = self.live.get(&(peer, read)) {
                    self.rig.driver.cancel(id(*live), self.sources[peer]);
                }
            }
            Step::HangUp => self.start(number, PROCESS, Op::HangUp),
            Step::Connect => {
                let name = self.addresses[0].as_abstract_name().unwrap();
                let address = SocketAddrUnix::new_abstract_name(name).unwrap();
                self.start(number, DIALLED, Op::Connect(Box::new(address.as_any())));
            }
            Step::Accept(limit) => self.start(number, LISTENER, Op::Accept { limit }),
            Step::ClientConnects => {
                let client = UnixStream::connect_addr(&self.addresses[1]).unwrap();
                self.clients.push_back(client);
            }
            Step::ClientCloses => drop(self.clients.pop_front()),
            // `cat` would write it to our standard output.
            Step::PeerWrites(PROCESS, _) | Step::PeerReads(PROCESS) => {}
            Step::PeerWrites(PTY, len) => {
                if let Some(slave) = &self.peers[PTY] {
                    let _ = rustix::io::write(slave, &vec![3; len % TYPED_MAX]);
                }
            }
            Step::PeerWrites(peer, len) => {
                let bytes: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
                if let Some(peer) = &self.peers[peer] {
                    let _ = rustix::io::write(peer, &bytes);
                }
            }
            Step::PeerReads(PTY) => {
                if let Some(slave) = &self.peers[PTY] {
                    self.empty(slave.as_fd());
                }
            }
            Step::PeerReads(peer) => {
                let mut bytes = vec![0; 500_000];
                if let Some(peer) = &self.peers[peer] {
                    let _ = rustix::io::read(peer, &mut bytes);
                }
            }
            Step::PeerCloses(peer) => {
                self.peers[peer] = None;
                if peer == PROCESS {
                    self.await_end(WaitIdOptions::NOWAIT);
                }
            }
            Step::Reap => {
                if self.peers[PROCESS].is_none() {
                    self.await_end(WaitIdOptions::empty());
                }
            }
            Step::OwnReceives(PTY) => {
                if let Some(master) = self.rig.driver.fd(self.sources[PTY]) {
                    self.empty(master);
                }
            }
            Step::OwnSends(PTY, len) => {
                if let Some(master) = self.rig.driver.fd(self.sources[PTY]) {
                    let _ = rustix::io::write(master, &vec![2; len % TYPED_MAX]);
                }
            }
            Step::OwnReceives(peer) => {
                let mut bytes = vec![0; 20_000];
                if let Some(fd) = self.rig.driver.fd(self.sources[peer]) {
                    let _ = rustix::net::recv(fd, &mut bytes[..], RecvFlags::DONTWAIT);
                }
            }
            Step::OwnSends(peer, len) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                if let Some(fd) = self.rig.driver.fd(self.sources[peer]) {
                    let _ = rustix::net::send(fd, &vec![2; len], flags);
                }
            }
        }
        self.flush_terminal();
        self.settle();
    }

    /// Waits until the process has ended; unless `NOWAIT` says otherwise, it is reaped.
    fn await_end(&self, options: WaitIdOptions) {
        // It fails if the process is reaped already.
        let _ = waitid(WaitId::Pid(self.process), WaitIdOptions::EXITED | options);
    }

    /// Reads from an end of the terminal all that was written to the other. One read may find a part of
    /// it.
    fn empty(&self, end: BorrowedFd<'_>) {
        self.flush_terminal();
        while rustix::io::read(end, &mut [0; 20_000]).is_ok_and(|read| read > 0) {
            self.flush_terminal();
        }
    }

    /// Has the kernel pass on what is under way between both ends of the terminal: it does so later
    /// by itself, and at once when somebody polls an end that has nothing to read.
    fn flush_terminal(&self) {
        let now = Timespec::default();
        let flags = PollFlags::IN | PollFlags::OUT;
        if let Some(master) = self.rig.driver.fd(self.sources[PTY]) {
            let _ = poll(&mut [PollFd::new(&master, flags)], Some(&now));
        }
        if let Some(slave) = &self.peers[PTY] {
            let _ = poll(&mut [PollFd::new(slave, flags)], Some(&now));
        }
    }

    fn start(&mut self, number: u32, peer: usize, op: Op) {
        let read = op.direction() == Direction::Read;
        if let std::collections::btree_map::Entry::Vacant(lane) = self.live.entry((peer, read)) {
            lane.insert(number);
            self.rig.driver.start(id(number), self.sources[peer], op);
        }
    }

    /// Takes turns until no completion comes.
    fn settle(&mut self) {
        loop {
            let completions = self.rig.turn(Duration::ZERO, AMPLE);
            if completions.is_empty() {
                return;
            }
            for completion in completions {
                let number = completion.id.watch.slot;
                let what = words(&completion);
                match completion.done {
                    Done::Data(data) => {
                        self.bytes.entry(number).or_default().extend(&*data);
                        continue;
                    }
                    Done::Accepted(connection, _) => {
                        self.accepted.entry(number).or_default().push(connection);
                        continue;
                    }
                    _ => {}
                }
                let bytes = self.bytes.remove(&number).unwrap_or_default();
                let sum: usize = bytes.iter().map(|byte| usize::from(*byte)).sum();
                let accepted = self.accepted.get(&number).map_or(0, Vec::len);
                let line = format!(
                    "{} bytes of sum {sum}, {accepted} accepted, {what}",
                    bytes.len()
                );
                assert!(self.history.insert(number, line).is_none(), "ended twice");
                assert!(completion.last);
                self.live.retain(|_, live| *live != number);
            }
        }
    }

    fn run(mut self, steps: &[Step]) -> History {
        self.settle();
        for (number, step) in (0..).zip(steps) {
            self.apply(number, step);
        }
        for (peer, read) in self.live.keys().copied().collect::<Vec<_>>() {
            self.apply(0, &Step::Cancel(peer, read));
        }
        assert!(self.live.is_empty(), "{:?}", self.live);
        self.peers.clear();
        self.await_end(WaitIdOptions::empty());
        self.history
    }
}

/// Starts a process that ends when its standard input does. Returns the other end of that, its pid and
/// its pidfd.
fn process() -> (OwnedFd, Pid, OwnedFd) {
    let (output, input) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .unwrap();
    let place = |number, fd| Place {
        number,
        origin: Origin::Given(fd),
    };
    let descriptors = [
        place(0, output.as_fd()),
        place(1, null.as_fd()),
        place(2, null.as_fd()),
    ];
    let launch = Launch {
        path: c"/bin/cat",
        argv: &[c"cat".into()],
        env: &[],
        cwd: c"/",
        descriptors: &descriptors,
        new_session: true,
        terminal: None,
        umask: None,
        limits: &[],
        nice: None,
        oom_score_adj: None,
        scheduling: None,
        user: None,
        death_signal: None,
        start: None,
        cgroup: None,
    };
    let (pid, pidfd) = sys::spawn(&launch).unwrap();
    rustix::io::ioctl_fionbio(&pidfd, true).unwrap();
    (input, Pid::from_raw(pid).unwrap(), pidfd)
}

/// Returns a listener with a name that the kernel chooses.
fn listener() -> (UnixListener, SocketAddr) {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed()).unwrap();
    rustix::net::listen(&socket, 128).unwrap();
    let listener = UnixListener::from(socket);
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Returns both ends of a new terminal that changes no byte, without blocking.
fn raw_terminal() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    let mut modes = tcgetattr(&slave).unwrap();
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes).unwrap();
    for end in [&master, &slave] {
        rustix::io::ioctl_fionbio(end, true).unwrap();
    }
    (master, slave)
}

#[test]
fn the_same_program_gives_the_same_results_on_every_backend() {
    let config = Config {
        failure_persistence: None,
        ..Config::with_cases(200)
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            let _alone = idle_child::none_starts();
            let of = |rig| World::new(rig).run(&steps);
            let epoll = of(Rig::new(Backend::Epoll));
            for backend in [Backend::Poll, Backend::Select, Backend::IoUring] {
                prop_assert_eq!(of(Rig::new(backend)), epoll.clone(), "{}", backend);
            }
            prop_assert_eq!(of(Rig::plain_io_uring()), epoll.clone(), "plain io_uring");
            let kept = Rig::kept(Backend::IoUring);
            prop_assert_eq!(of(kept), epoll, "io_uring with receipts");
            Ok(())
        })
        .unwrap();
}
