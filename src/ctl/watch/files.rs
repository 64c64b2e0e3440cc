//! `watch path` and `watch file`: directories, and files that are read or followed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, ValueEnum};

use super::super::failure::{Failure, Outcome, USAGE};
use super::super::parse;
use super::super::session::Session;
use super::add::{self, Made, Registration};
use crate::proto::{FileSpec, FileStart, PathChangeKind, PathSpec, watch_spec};

pub(in crate::ctl) const PATH_EXAMPLES: &str = "Examples:
  evloopctl watch path /etc -f
  evloopctl watch path -r src --ignore target --ignore '*.o' -f
  evloopctl watch path /run/app.conf --only write-ended,moved --name conf
  evloopctl watch path /mnt/nfs/in --poll 5s -f

The path need not exist yet. It is watched by its name: what an editor puts in its place is watched \
too. `path_synced` tells from where on nothing is missed, `path_rescan` where to look.";

pub(in crate::ctl) const FILE_EXAMPLES: &str = "Examples:
  evloopctl watch file --follow /var/log/app.log
  evloopctl watch file --follow --end --name applog --detach /var/log/app.log
  evloopctl watch file /etc/hosts --name hosts    # its bytes become events

With --follow it goes on with what comes under the name, as `tail -F` does, reads what was rotated to \
its end, and prints the bytes; without a name the watch ends with this command. Nothing is missed while \
it is printed: reading waits for whoever reads stdout.";

/// A change to tell.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(in crate::ctl) enum Only {
    Created,
    Deleted,
    Modified,
    WriteEnded,
    Attributes,
    Moved,
    Opened,
    Accessed,
    ClosedUnwritten,
}

impl From<Only> for PathChangeKind {
    fn from(only: Only) -> Self {
        match only {
            Only::Created => Self::Created,
            Only::Deleted => Self::Deleted,
            Only::Modified => Self::Modified,
            Only::WriteEnded => Self::WriteEnded,
            Only::Attributes => Self::Attributes,
            Only::Moved => Self::Moved,
            Only::Opened => Self::Opened,
            Only::Accessed => Self::Accessed,
            Only::ClosedUnwritten => Self::ClosedUnwritten,
        }
    }
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct OfPath {
    /// A directory or file; it need not exist yet
    path: PathBuf,
    /// Watch all directories below it too
    #[arg(short, long)]
    recursive: bool,
    /// Tell these changes [default: all but opened, accessed and closed-unwritten]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KINDS")]
    only: Vec<Only>,
    /// Leave out what matches, as in a .gitignore file; may be repeated
    #[arg(long, value_name = "PATTERN")]
    ignore: Vec<String>,
    /// Make equal changes within this time one event
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    window: Option<prost_types::Duration>,
    /// Look at file systems that tell nothing, such as NFS, at this interval
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    poll: Option<prost_types::Duration>,
    #[command(flatten)]
    registration: Registration,
}

#[derive(Debug, Args)]
pub(in crate::ctl) struct OfFile {
    /// A regular file; with --follow it need not exist yet
    path: PathBuf,
    /// With --follow, print nothing: the watch goes on by itself
    #[arg(short, long)]
    detach: bool,
    /// Begin at its end
    #[arg(long, conflicts_with = "offset")]
    end: bool,
    /// Begin at this byte
    #[arg(long, value_name = "BYTES")]
    offset: Option<u64>,
    /// Read nothing until reading is resumed
    #[arg(long)]
    start_paused: bool,
    /// How many rotated files are kept open until they are read [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    keep_files: Option<u32>,
    /// How long a rotated file that is still written makes the next one wait [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    rotated_wait: Option<prost_types::Duration>,
    #[command(flatten)]
    registration: Registration,
}

/// Returns the path, absolute, as text or as bytes.
fn absolute(path: &Path) -> Result<(String, Bytes), Failure> {
    let refused = |error: std::io::Error| Failure::new(path.display(), error).code(USAGE);
    let path: OsString = std::path::absolute(path).map_err(refused)?.into_os_string();
    Ok(match path.into_string() {
        Ok(text) => (text, Bytes::new()),
        Err(other) => (String::new(), Bytes::copy_from_slice(other.as_bytes())),
    })
}

pub(super) fn path(args: OfPath) -> Made {
    let (path, path_bytes) = absolute(&args.path)?;
    let kinds = args
        .only
        .into_iter()
        .map(|only| PathChangeKind::from(only).into());
    let spec = PathSpec {
        path,
        path_bytes,
        recursive: args.recursive,
        kinds: kinds.collect(),
        ignore: args.ignore,
        window: args.window,
        poll: args.poll,
    };
    Ok((watch_spec::Spec::Path(spec), args.registration))
}

/// Reads or follows a file, and prints its bytes with `--follow`.
pub(super) async fn file(session: &Session, args: OfFile) -> Outcome {
    let prints = args.registration.follows() && !args.detach;
    let (spec, registration) = spec_of_file(args)?;
    if !prints {
        return add::run(session, spec, &registration.detached()).await;
    }
    let added = add::request(session, spec, &registration).await?;
    add::follow_bytes(session, &added).await
}

fn spec_of_file(args: OfFile) -> Made {
    let (path, path_bytes) = absolute(&args.path)?;
    let start = if args.end {
        FileStart::End
    } else {
        FileStart::Unspecified
    };
    let spec = FileSpec {
        path,
        path_bytes,
        follow: args.registration.follows(),
        start: start.into(),
        offset: args.offset,
        start_paused: args.start_paused,
        keep_generations: args.keep_files.unwrap_or_default(),
        rotated_wait: args.rotated_wait,
        ..FileSpec::default()
    };
    Ok((watch_spec::Spec::File(spec), args.registration))
}
