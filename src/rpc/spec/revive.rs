//! Makes watches of an earlier life of the daemon again, from their specifications.

use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::sockets::{accepting, listening_again, target_of};
use super::tls::{self, Role};
use super::{HOUR, datagram, ending, path, refused, regular_file, signals, timer, water_marks};
use crate::access::Principal;
use crate::driver::file::{self, Purpose};
use crate::driver::{Claim, Nonblocking};
use crate::error::{Error, Result, SystemError};
use crate::event_loop::{FoundWatch, Revive};
use crate::policy::Registry;
use crate::proto;
use crate::proto::socket_address::Address;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{
    KeptConnection, KeptDatagrams, KeptDescriptor, KeptListener, KeptStream, KeptTerminal,
};
use crate::proto::watch_spec::Spec;
use crate::rpc::convert;
use crate::state::Inherited;
use crate::watch::address::UnixName;
use crate::watch::{
    Accepting, AfterGrace, DatagramOrder, EarlierConnection, EarlierListener, EarlierTerminal,
    FdOrder, FileOrder, Orphan, PathOrder, PidOrder, PipeEnd, PipeOrder, Relay, Services,
    SignalOrder, StreamOptions, Unreported, Watch, Whose,
};

/// What earlier lives have left open, for the loops that go on.
pub struct Reviver {
    registry: Weak<Registry>,
    inherited: Arc<Mutex<Inherited>>,
}

impl fmt::Debug for Reviver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviver").finish_non_exhaustive()
    }
}

impl Reviver {
    /// Makes it from all descriptors that were found.
    #[must_use]
    pub fn new(registry: &Arc<Registry>, inherited: Inherited) -> Arc<Self> {
        Arc::new(Self {
            registry: Arc::downgrade(registry),
            inherited: Arc::new(Mutex::new(inherited)),
        })
    }

    fn connection(
        &self,
        (registry, owner): (&Registry, &Principal),
        spec: Option<&Spec>,
        kept: &KeptConnection,
    ) -> Result<Box<dyn Watch>> {
        let mut inherited = self.inherited.lock();
        let socket = match &kept.descriptor {
            Some(_) if inherited.is_alone() => return Err(gone_with_keeper()),
            Some(socket) => Some(inherited.take(socket).ok_or_else(gone)?),
            None => None,
        };
        let target = match (spec, &socket) {
            (Some(Spec::Connection(spec)), None) => Some(target_of(spec, owner)?),
            _ => None,
        };
        let limits = registry.services().transport;
        let attempts = kept.attempts.iter().flat_map(|all| &all.live);
        let earlier = EarlierConnection {
            socket,
            mode: kept.mode().into(),
            options: StreamOptions {
                keep_half_open: kept.keep_half_open,
                paused: kept.paused,
                marks: water_marks(limits, "spec.connection", kept.water_marks.as_ref())?,
            },
            target,
            attempts: attempts
                .map(|attempt| inherited.take(attempt.descriptor.as_ref()?))
                .collect(),
        };
        Ok(earlier.build())
    }

    fn listener(
        &self,
        registry: &Registry,
        spec: &proto::ListenerSpec,
        kept: &KeptListener,
    ) -> Result<Box<dyn Watch>> {
        let (options, max_connections) = accepting(spec, registry.services().transport)?;
        let tls = match spec.tls.clone() {
            None => None,
            Some(mut given) => {
                let order = tls::order(registry, "spec.listener.tls", &mut given, Role::Server)?;
                Some((order, registry.config().limits.tls_handshakes))
            }
        };
        let mut inherited = self.inherited.lock();
        let sockets = kept.sockets.iter();
        let sockets = sockets.map(|socket| inherited.take(socket).ok_or_else(gone));
        let sockets = sockets.collect::<Result<_>>()?;
        let numbers: Vec<_> = kept.sockets.iter().map(|socket| socket.number).collect();
        let left = Arc::clone(&self.inherited);
        let unreported = move || {
            let numbers = numbers.into_iter();
            let take = |number| left.lock().take_accepted(number);
            numbers.flat_map(take).collect()
        };
        let earlier = EarlierListener {
            sockets,
            mode: kept.mode().into(),
            accepting: Accepting {
                options,
                max_connections,
                tls,
            },
            file: match (&spec.target, kept.file_inode) {
                (_, 0) => None,
                (Some(proto::listener_spec::Target::Unix(unix)), inode) => match &unix.name {
                    Some(proto::unix_address::Name::Path(path)) => {
                        Some((path.into(), (kept.file_device, inode)))
                    }
                    _ => None,
                },
                _ => None,
            },
            unreported: Unreported::Later(Box::new(unreported)),
        };
        Ok(earlier.build())
    }
}

fn terminal_of(
    kept: &KeptTerminal,
    take: impl Fn(&Option<KeptDescriptor>) -> Result<OwnedFd>,
) -> Result<EarlierTerminal> {
    let there = |kept: &Option<KeptDescriptor>| match kept {
        Some(_) => take(kept).map(Some),
        None => Ok(None),
    };
    let (output, input) = (take(&kept.relay)?, take(&kept.relay_input)?);
    let relay = Relay::of_earlier_life(output, input, there(&kept.typed)?);
    Ok(EarlierTerminal {
        control: take(&kept.control)?,
        slave: there(&kept.slave)?,
        relay: relay.map_err(|errno| SystemError::new(errno, "memory", ""))?,
    })
}

fn datagrams(
    services: &Services,
    socket: OwnedFd,
    spec: &proto::DatagramSpec,
    kept: &KeptDatagrams,
) -> Result<Box<dyn Watch>> {
    let field = "spec.datagram";
    let unix = |address: &Option<proto::SocketAddress>| match address {
        Some(proto::SocketAddress {
            address: Some(Address::Unix(unix)),
        }) => UnixName::check(field, unix).map(Some),
        _ => Ok(None),
    };
    let (local, peer) = (unix(&spec.local)?, unix(&spec.peer)?);
    let claim = file::claim(socket, Purpose::Datagram);
    let mut claim = claim.map_err(|error| refused(field, error))?;
    if spec.local.is_some() || spec.peer.is_some() {
        claim.mode = Nonblocking::Own;
    }
    let marks = water_marks(services.transport, field, spec.water_marks.as_ref())?;
    let names = (local, peer.as_ref());
    let file = kept.file_device.map(|device| (device, kept.file_inode));
    let limits = (kept.max_size, marks);
    let again = DatagramOrder::again(claim, names, file, limits, services);
    again.ok_or_else(gone)
}

fn gone() -> Error {
    Error::wrong_state("its file descriptor is gone")
}

fn gone_with_keeper() -> Error {
    Error::wrong_state(
        "the daemon and its keeper were ended at once, and its file descriptor with them",
    )
}

impl Revive for Reviver {
    fn is_alone(&self) -> bool {
        self.inherited.lock().is_alone()
    }

    fn close(&self, left: &KeptDescriptor) -> bool {
        let mut inherited = self.inherited.lock();
        inherited.is_alone() || inherited.take(left).is_some()
    }

    fn revive(&self, owner: &Principal, found: &FoundWatch) -> Result<Box<dyn Watch>> {
        let registry = self.registry.upgrade();
        let registry = registry.ok_or(Error::Internal("the daemon is ending"))?;
        let services = registry.services();
        let is_alone = self.is_alone();
        let take = |kept: &Option<KeptDescriptor>| {
            let fd = kept
                .as_ref()
                .and_then(|kept| self.inherited.lock().take(kept));
            fd.ok_or_else(if is_alone { gone_with_keeper } else { gone })
        };
        let again = |pid, start_time: Option<u64>, kept: &Option<KeptDescriptor>| {
            let inherited = self.inherited.lock();
            inherited.pidfd(pid, start_time?, kept.as_ref()?)
        };
        let pipe = |kept: &proto::state::KeptPipe, end| {
            let fd = take(&kept.descriptor)?;
            let field = "spec.pipe";
            let kind = file::inspect(fd.as_fd()).map_err(|refusal| refused(field, refusal))?;
            let (mode, blocks) = (Nonblocking::from(kept.mode()), kept.blocks);
            let claim = Claim {
                fd,
                kind,
                mode,
                blocks,
            };
            Ok(PipeOrder { claim, end }.build())
        };
        let spec = found.watch.spec.as_ref();
        let spec = spec.and_then(|spec| spec.spec.as_ref());
        match (spec, &found.state.of) {
            (Some(Spec::Fd(_)), Some(Of::Fd(kept))) => {
                let fd = take(&kept.descriptor)?;
                let kind =
                    file::inspect(fd.as_fd()).map_err(|refusal| refused("spec.fd", refusal))?;
                let order = FdOrder {
                    fd,
                    kind,
                    readable: false,
                    writable: false,
                };
                Ok(order.build())
            }
            (Some(Spec::Process(spec)), Some(Of::Child(kept))) => {
                let pipe = |kept: &Option<KeptDescriptor>| match kept {
                    Some(_) if !is_alone => take(kept).map(Some),
                    _ => Ok(None),
                };
                let of = |stream: &Option<KeptStream>| stream.as_ref().and_then(|s| s.descriptor);
                let pipes = [
                    pipe(&kept.stdin)?,
                    pipe(&of(&kept.stdout))?,
                    pipe(&of(&kept.stderr))?,
                ];
                let terminal = match &kept.terminal {
                    Some(terminal) if !is_alone => Some(terminal_of(terminal, take)?),
                    _ => None,
                };
                let (whose, pidfd) = match is_alone {
                    true => {
                        let start_time = Some(kept.start_time);
                        (Whose::Strangers, again(kept.pid, start_time, &kept.pidfd))
                    }
                    false if kept.strangers => (Whose::Strangers, Some(take(&kept.pidfd)?)),
                    false => (Whose::Keepers, Some(take(&kept.pidfd)?)),
                };
                let marks = spec.stdin_water_marks.as_ref();
                let orphan = Orphan {
                    pid: kept.pid,
                    start_time: kept.start_time,
                    whose,
                    pidfd,
                    cgroup: kept.cgroup,
                    pipes,
                    terminal,
                    ending: ending::checked(spec)?,
                    after_grace: match spec.after_grace() {
                        proto::AfterGrace::KeepReading => AfterGrace::KeepReading,
                        proto::AfterGrace::Drain | proto::AfterGrace::Unspecified => {
                            AfterGrace::Drain
                        }
                    },
                    stdin_marks: water_marks(services.transport, "spec.process", marks)?,
                };
                orphan.adopt(services)
            }
            (Some(Spec::Pid(spec)), Some(Of::Pid(kept))) => {
                let wait = convert::optional_duration("spec.pid.reap_wait", spec.reap_wait, HOUR)?;
                let pidfd = match is_alone {
                    true => again(kept.pid, kept.start_ticks, &kept.descriptor),
                    false => Some(take(&kept.descriptor)?),
                };
                Ok(PidOrder::again(pidfd, wait, services))
            }
            (Some(Spec::Datagram(spec)), Some(Of::Datagrams(kept))) if is_alone => {
                let marks = spec.water_marks.as_ref();
                let marks = water_marks(services.transport, "spec.datagram", marks)?;
                datagram::again(spec, kept, marks)?.build(services)
            }
            (Some(Spec::Datagram(spec)), Some(Of::Datagrams(kept))) => {
                datagrams(services, take(&kept.descriptor)?, spec, kept)
            }
            (Some(Spec::File(spec)), Some(Of::File(kept))) => {
                let read_size = services.transport.read_size;
                let checked = regular_file::checked(&mut spec.clone(), read_size)?;
                let mut inherited = self.inherited.lock();
                let files = kept.files.iter();
                let files = files.filter_map(|kept| inherited.take(kept)).collect();
                let has_interval = spec.check_every.is_some();
                Ok(FileOrder::again(checked, files, has_interval))
            }
            (Some(Spec::Path(spec)), Some(Of::Path(_))) => {
                let checked = path::checked(&mut spec.clone(), services.path_inbox)?;
                Ok(PathOrder::again(checked))
            }
            (Some(Spec::ReadPipe(spec)), Some(Of::Pipe(kept))) => {
                let paused = spec.start_paused;
                pipe(kept, PipeEnd::Read { paused })
            }
            (Some(Spec::WritePipe(spec)), Some(Of::Pipe(kept))) => {
                let marks = spec.water_marks.as_ref();
                let marks = water_marks(services.transport, "spec.write_pipe", marks)?;
                pipe(kept, PipeEnd::Write { marks })
            }
            (spec, Some(Of::Connection(kept))) => self.connection((&registry, owner), spec, kept),
            (Some(Spec::Listener(spec)), Some(Of::Listener(kept))) if is_alone => {
                listening_again(&registry, spec.clone(), kept.port)?.build()
            }
            (Some(Spec::Listener(spec)), Some(Of::Listener(kept))) => {
                self.listener(&registry, spec, kept)
            }
            (Some(Spec::Signal(spec)), _) => {
                let numbers = signals(&spec.signals, services)?;
                Ok(SignalOrder(numbers).build())
            }
            (Some(Spec::Timer(spec)), _) => {
                let checked = timer::check(spec, &found.watch.name)?;
                Ok(checked.order(services)?.build())
            }
            _ => Err(Error::wrong_state(
                "this kind of watch ends with the daemon",
            )),
        }
    }
}
