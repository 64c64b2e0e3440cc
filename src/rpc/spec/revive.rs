//! Makes watches of an earlier life of the daemon again, from their specifications.

use std::os::fd::AsFd as _;

use super::{HOUR, ending, path, refused, regular_file, signals, timer, water_marks};
use crate::driver::Nonblocking;
use crate::driver::file::{self, Purpose};
use crate::error::{Error, Result};
use crate::event_loop::FoundWatch;
use crate::proto;
use crate::proto::socket_address::Address;
use crate::proto::state::kept_watch_state::Of;
use crate::proto::state::{KeptDescriptor, KeptStream};
use crate::proto::watch_spec::Spec;
use crate::rpc::convert;
use crate::state::Inherited;
use crate::watch::address::UnixName;
use crate::watch::{
    AfterGrace, DatagramOrder, FdOrder, FileOrder, Orphan, PathOrder, PidOrder, Services,
    SignalOrder, Watch,
};

/// Makes a watch again. It is not started.
///
/// # Errors
/// Its kind ends with the daemon, or the system refuses something.
pub fn revive(
    services: &Services,
    inherited: &mut Inherited,
    found: &FoundWatch,
) -> Result<Box<dyn Watch>> {
    let gone = Error::wrong_state("its file descriptor is gone");
    let mut take = |kept: &Option<KeptDescriptor>| {
        let fd = kept.as_ref().and_then(|kept| inherited.take(kept));
        fd.ok_or_else(|| gone.clone())
    };
    let spec = found.watch.spec.as_ref();
    let spec = spec.and_then(|spec| spec.spec.as_ref());
    match (spec, &found.state.of) {
        (Some(Spec::Fd(_)), Some(Of::Fd(kept))) => {
            let fd = take(&kept.descriptor)?;
            let kind = file::inspect(fd.as_fd()).map_err(|refusal| refused("spec.fd", refusal))?;
            let order = FdOrder {
                fd,
                kind,
                readable: false,
                writable: false,
            };
            Ok(order.build())
        }
        (Some(Spec::Pid(spec)), Some(Of::Pid(kept))) => {
            let wait = convert::optional_duration("spec.pid.reap_wait", spec.reap_wait, HOUR)?;
            let pidfd = take(&kept.descriptor)?;
            Ok(PidOrder::again(pidfd, wait, services))
        }
        (Some(Spec::Datagram(spec)), Some(Of::Datagrams(kept))) => {
            let fd = take(&kept.descriptor)?;
            let field = "spec.datagram";
            let unix = |address: &Option<proto::SocketAddress>| match address {
                Some(proto::SocketAddress {
                    address: Some(Address::Unix(unix)),
                }) => UnixName::check(field, unix).map(Some),
                _ => Ok(None),
            };
            let (local, peer) = (unix(&spec.local)?, unix(&spec.peer)?);
            let mut claim =
                file::claim(fd, Purpose::Datagram).map_err(|error| refused(field, error))?;
            if spec.local.is_some() || spec.peer.is_some() {
                claim.mode = Nonblocking::Own;
            }
            let marks = water_marks(services.transport, field, spec.water_marks.as_ref())?;
            let names = (local, peer.as_ref());
            let file = kept.file_device.map(|device| (device, kept.file_inode));
            let limits = (kept.max_size, marks);
            let again = DatagramOrder::again(claim, names, file, limits, services);
            again.ok_or(gone)
        }
        (Some(Spec::File(spec)), Some(Of::File(kept))) => {
            let read_size = services.transport.read_size;
            let checked = regular_file::checked(&mut spec.clone(), read_size)?;
            let files = kept.files.iter();
            let files = files.filter_map(|kept| inherited.take(kept)).collect();
            let has_interval = spec.check_every.is_some();
            Ok(FileOrder::again(checked, files, has_interval))
        }
        (Some(Spec::Path(spec)), Some(Of::Path(_))) => {
            let checked = path::checked(&mut spec.clone(), services.path_inbox)?;
            Ok(PathOrder::again(checked))
        }
        (Some(Spec::Process(spec)), Some(Of::Child(kept))) => {
            let mut pipe = |kept: &Option<KeptDescriptor>| match kept {
                Some(_) => take(kept).map(Some),
                None => Ok(None),
            };
            let of = |stream: &Option<KeptStream>| stream.as_ref().and_then(|s| s.descriptor);
            let pipes = [
                pipe(&kept.stdin)?,
                pipe(&of(&kept.stdout))?,
                pipe(&of(&kept.stderr))?,
            ];
            let marks = spec.stdin_water_marks.as_ref();
            let orphan = Orphan {
                pid: kept.pid,
                start_time: kept.start_time,
                pidfd: take(&kept.pidfd)?,
                pipes,
                ending: ending::checked(spec)?,
                after_grace: match spec.after_grace() {
                    proto::AfterGrace::KeepReading => AfterGrace::KeepReading,
                    proto::AfterGrace::Drain | proto::AfterGrace::Unspecified => AfterGrace::Drain,
                },
                stdin_marks: water_marks(services.transport, "spec.process", marks)?,
            };
            orphan.adopt(services)
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
