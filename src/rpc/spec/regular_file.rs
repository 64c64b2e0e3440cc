//! Checks of specifications of files.

use std::path::PathBuf;
use std::time::Duration;

use super::path::absolute;
use super::{Checks, Plan, Specification};
use crate::error::{Error, Result};
use crate::follow;
use crate::proto::{self, FileStart, watch_spec::Spec};
use crate::rpc::convert;
use crate::watch::{FileOrder, Order};

const DAY: Duration = Duration::from_secs(24 * 3600);
const CHECK_MIN: Duration = Duration::from_millis(10);

/// Checks the specification of a file, of which at most `read_size` bytes are read at once.
pub(super) fn checked(file: &mut proto::FileSpec, read_size: usize) -> Result<follow::Spec> {
    let fields = ("spec.file.path", "spec.file.path_bytes");
    let path = absolute(fields, &mut file.path, &mut file.path_bytes)?;
    let mut spec = follow::Spec::new(PathBuf::from(path), file.follow);
    let start = FileStart::try_from(file.start);
    spec.from = match (start, file.offset) {
        (Ok(FileStart::Unspecified), Some(offset)) => follow::Begin::Offset(offset),
        (Ok(FileStart::Unspecified | FileStart::Beginning), None) => follow::Begin::Start,
        (Ok(FileStart::End), None) => follow::Begin::End,
        (Ok(_), Some(_)) => {
            let allowed = "must be unspecified if offset is set";
            return Err(Error::invalid("spec.file.start", allowed));
        }
        (Err(_), _) => {
            return Err(Error::invalid(
                "spec.file.start",
                "must be BEGINNING or END",
            ));
        }
    };
    if file.keep_generations > 0 {
        spec.keep_generations = file.keep_generations as usize;
    }
    if file.keep_bytes > 0 {
        spec.keep_bytes = file.keep_bytes;
    }
    let (wait, every) = (file.rotated_wait, file.check_every);
    if let Some(wait) = convert::optional_duration("spec.file.rotated_wait", wait, DAY)? {
        spec.rotated_wait = wait;
    }
    let often = CHECK_MIN..=DAY;
    if let Some(every) = convert::optional_within("spec.file.check_every", every, often)? {
        spec.check_every = every;
    }
    spec.read_size = read_size;
    Ok(spec)
}

impl Specification for proto::FileSpec {
    fn plan(self, checks: &Checks<'_>) -> Result<Plan> {
        let mut file = self;
        let read_size = checks.api.registry.services().transport.read_size;
        let spec = checked(&mut file, read_size)?;
        let hub = checks.on.paths()?;
        let (paused, has_interval) = (file.start_paused, file.check_every.is_some());
        Ok(Plan {
            need: FileOrder::NEED,
            order: Order::Later(Box::new(move |_| {
                Ok(FileOrder::open(&hub, spec, has_interval, paused)?.build())
            })),
            claimed_from: None,
            spec: Spec::File(file),
        })
    }
}
