//! Writes the messages of a subscription to the file of `events --record`.

use std::path::PathBuf;

use super::super::failure::Failure;
use crate::history::file::Writer;
use crate::proto::{SubscribeRequest, SubscribeResponse};

/// The file to which a subscription is recorded, message by message.
#[derive(Debug)]
pub(in crate::ctl) struct Tape {
    path: PathBuf,
    /// Whether a file that exists is replaced.
    replace: bool,
    /// Made with the first message, so that a refused subscription leaves no file.
    writer: Option<Writer>,
}

impl Tape {
    pub(in crate::ctl) const fn new(path: PathBuf, replace: bool) -> Self {
        Self {
            path,
            replace,
            writer: None,
        }
    }

    pub(super) fn push(
        &mut self,
        request: &SubscribeRequest,
        response: &SubscribeResponse,
    ) -> Result<(), Failure> {
        let writer = match self.writer.take() {
            Some(writer) => Ok(writer),
            None => Writer::create(&self.path, self.replace, request),
        };
        let pushed = writer.and_then(|mut writer| {
            writer.push(response)?;
            self.writer = Some(writer);
            Ok(())
        });
        let what = format!("--record {}", self.path.display());
        pushed.map_err(|error| Failure::new(what, error))
    }
}
