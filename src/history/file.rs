//! Recordings as files: the request of a subscription, and every response in its order.
//!
//! The format: the line [`MAGIC`], then messages, each preceded by its length in bytes as a
//! protobuf varint. The first message is the `SubscribeRequest`; each other one is a
//! `SubscribeResponse`. A second header among those begins a new subscription: the stream broke, and
//! was resumed. The recorder writes each message at once, so that a crash can cut off only the last
//! one.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::path::Path;

use bytes::{Buf as _, Bytes};

use super::subscription::{RecordedSubscription, view_of};
use crate::proto::subscribe_response::Message;
use crate::proto::{SubscribeRequest, SubscribeResponse};

/// The first line of a recording, with the number of the format.
pub const MAGIC: &[u8] = b"evloopd recording 1\n";

/// Most bytes of one message; a client accepts no more from the daemon.
pub const MESSAGE_MAX: u64 = 16 << 20;

/// Most bytes of a message's length.
const VARINT_MAX: usize = 10;

/// Writes a recording, message by message.
#[derive(Debug)]
pub struct Writer {
    file: File,
    buffer: Vec<u8>,
}

impl Writer {
    /// Makes the file and writes the request. With `replace`, a file that exists is replaced;
    /// without, that is an error.
    ///
    /// # Errors
    /// Errors of the file system; `AlreadyExists` without `replace`.
    pub fn create(path: &Path, replace: bool, request: &SubscribeRequest) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true);
        if replace {
            options.create(true).truncate(true);
        } else {
            options.create_new(true);
        }
        let mut writer = Self {
            file: options.open(path)?,
            buffer: MAGIC.to_vec(),
        };
        writer.put(request)?;
        Ok(writer)
    }

    /// Adds a response. Once this returns, a crash of the process does not lose it.
    ///
    /// # Errors
    /// Errors of the file system. The recording may then end in a part of the message.
    pub fn push(&mut self, response: &SubscribeResponse) -> io::Result<()> {
        self.put(response)
    }

    fn put(&mut self, message: &impl prost::Message) -> io::Result<()> {
        let encoded = message.encode_length_delimited(&mut self.buffer);
        encoded.map_err(io::Error::other)?;
        let written = self.file.write_all(&self.buffer);
        self.buffer.clear();
        written
    }
}

/// A recording, read into memory as a whole.
#[derive(Debug)]
pub struct RecordingFile {
    /// The first request. Each later subscription asked for the events after the one before it.
    pub request: SubscribeRequest,
    /// The subscriptions, in the order in which they were recorded.
    pub subscriptions: Vec<RecordedSubscription>,
    /// Bytes at the end that are not a whole message: the recorder was stopped while it wrote.
    pub cut_off: u64,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The file system reports an error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file does not begin with [`MAGIC`].
    #[error("this file is not a recording; `evloopctl events --record FILE` makes one")]
    Foreign,
    /// The bytes are not a message.
    #[error("the recording is damaged at byte {at}: {what}")]
    Damaged {
        /// Where those bytes begin, counted from the start of the file.
        at: u64,
        /// The damage, in one clause.
        what: String,
    },
}

impl RecordingFile {
    /// Reads a recording.
    ///
    /// # Errors
    /// See [`Unreadable`]. A last message that is cut off is no error: see [`Self::cut_off`].
    pub fn read(path: &Path) -> Result<Self, Unreadable> {
        Self::read_from(&mut BufReader::new(File::open(path)?))
    }

    fn read_from(input: &mut BufReader<impl Read>) -> Result<Self, Unreadable> {
        let mut magic = Vec::new();
        let most = MAGIC.len() as u64;
        input.by_ref().take(most).read_to_end(&mut magic)?;
        if magic != MAGIC {
            return Err(Unreadable::Foreign);
        }
        let mut messages = Messages { input, at: most };
        let mut file = Self {
            request: SubscribeRequest::default(),
            subscriptions: Vec::new(),
            cut_off: 0,
        };
        match messages.next()? {
            Next::Message(at, bytes) => file.request = decoded(at, bytes)?,
            Next::CutOff(bytes) => file.cut_off = bytes,
            Next::End => {}
        }
        let view = view_of(file.request.filter.as_ref());
        loop {
            let (at, bytes) = match messages.next()? {
                Next::Message(at, bytes) => (at, bytes),
                Next::CutOff(bytes) => {
                    file.cut_off = bytes;
                    return Ok(file);
                }
                Next::End => return Ok(file),
            };
            let response: SubscribeResponse = decoded(at, bytes)?;
            match (response.message, file.subscriptions.last_mut()) {
                (Some(Message::Header(header)), _) => file
                    .subscriptions
                    .push(RecordedSubscription::new(view, header)),
                (Some(message), Some(subscription)) => subscription.messages.push(message),
                (Some(_), None) => {
                    return Err(damaged(
                        at,
                        &"this message must be the header of a subscription",
                    ));
                }
                // A kind of message newer than this program.
                (None, _) => {}
            }
        }
    }
}

fn damaged(at: u64, what: &impl ToString) -> Unreadable {
    let what = what.to_string();
    Unreadable::Damaged { at, what }
}

fn decoded<T: prost::Message + Default>(at: u64, bytes: Bytes) -> Result<T, Unreadable> {
    T::decode(bytes).map_err(|error| damaged(at, &error))
}

enum Next {
    /// Where the message begins, and its bytes.
    Message(u64, Bytes),
    /// The number of bytes left, which are not a whole message.
    CutOff(u64),
    End,
}

struct Messages<'a, R> {
    input: &'a mut BufReader<R>,
    at: u64,
}

impl<R: Read> Messages<'_, R> {
    fn next(&mut self) -> Result<Next, Unreadable> {
        let at = self.at;
        let mut head = [0; VARINT_MAX];
        let mut len = 0;
        loop {
            let Some(&byte) = self.input.fill_buf()?.first() else {
                return Ok(match len {
                    0 => Next::End,
                    len => Next::CutOff(len as u64),
                });
            };
            self.input.consume(1);
            head[len] = byte;
            len += 1;
            if byte < 0x80 || len == VARINT_MAX {
                break;
            }
        }
        let mut head_bytes = &head[..len];
        let size = prost::decode_length_delimiter(&mut head_bytes)
            .ok()
            .filter(|_| !head_bytes.has_remaining())
            .and_then(|size| u64::try_from(size).ok())
            .filter(|size| *size <= MESSAGE_MAX);
        let Some(size) = size else {
            let what = format!("the length of a message must be at most {MESSAGE_MAX} bytes");
            return Err(damaged(at, &what));
        };
        let mut bytes = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut bytes)?;
        let read = bytes.len() as u64;
        self.at += len as u64 + read;
        if read < size {
            return Ok(Next::CutOff(self.at - at));
        }
        Ok(Next::Message(at, bytes.into()))
    }
}
