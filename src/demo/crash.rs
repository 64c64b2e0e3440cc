//! Act 1: two clients run the same child, one with and one without evloopd, and are killed.

use std::time::Duration;

use tokio::io::AsyncBufReadExt as _;

use super::clients::{CHILD_NAME, LOST};
use super::numbers::{EXIT_CODE, FATAL_LINE, LINES, Numbers};
use super::process::Client;
use super::screen::{BAD, DIM, GOOD, PLAIN};
use super::{Answer as _, During as _, Failure, Stage, Total, require};
use crate::history::{Recording, View, check_resumed};
use crate::proto::event::Kind;
use crate::proto::exited::Status;
use crate::proto::watch_service_client::WatchServiceClient;
use crate::proto::{
    Batch, Data, Event, GetWatchRequest, GoodbyeReason, LoopRef, RunHeader, RunResponse, Stream,
    WatchRef, loop_ref, run_response, watch, watch_ref,
};
use crate::text::grouped;

/// How long both children run without a client. The value matters only to the viewer.
const ABSENCE: Duration = Duration::from_millis(300);

const PLAIN_SIDE: &str = "plain";
const OUR_SIDE: &str = "evloopd";

/// Runs the act, and adds the checker's summary to `total`.
pub(super) async fn play(stage: &Stage<'_>, total: &mut Total) -> Result<(), Failure> {
    stage.screen.act(
        "1. A client is killed. What becomes of its child?",
        &[
            "Two children number 10,000 lines and exit with 7: one a plain subprocess of its client, one run",
            "through evloopd. Both clients get SIGKILL at line 3,000; then new clients ask for the rest.",
        ],
    )?;
    let (child, first) = tokio::try_join!(plain_life(stage), first_life(stage))?;
    tokio::time::sleep(ABSENCE).await;
    plain_afterlife(stage, child).await?;
    let second = second_life(stage, &first).await?;

    let lives = [first.recording, second.recording];
    let summary = check_resumed(&lives).map_err(|violation| Failure::Broken {
        of: "the two lives of the client",
        violation,
    })?;
    total.add(&summary, stage.backend_of(first.header.loop_id).await?);
    Ok(())
}

/// Runs the child as a plain subprocess until its client is killed; returns the child's process id.
async fn plain_life(stage: &Stage<'_>) -> Result<String, Failure> {
    let mut client = stage.client("plain", &[])?;
    let mut child = String::new();
    client
        .out
        .read_line(&mut child)
        .await
        .during("read from a client")?;
    let child = child.trim_end().to_owned();
    let started = format!("client {} started child {child}", client.pid());
    stage.screen.row(PLAIN_SIDE, PLAIN, &started)?;

    let mut numbers = Numbers::default();
    let mut offset = 0;
    while numbers.lines() < FATAL_LINE {
        let chunk = client.out.fill_buf().await.during("read from a client")?;
        require(!chunk.is_empty(), || {
            "the plain client ended early".to_owned()
        })?;
        let (len, lines) = (chunk.len(), numbers.take(offset, chunk, FATAL_LINE)?);
        client.out.consume(len);
        offset += u64::try_from(len).unwrap_or_default();
        milestones(stage, PLAIN_SIDE, lines)?;
    }
    kill(stage, PLAIN_SIDE, client).await?;
    Ok(child)
}

/// Starts a new client, which asks for the status of the plain child and cannot get it.
async fn plain_afterlife(stage: &Stage<'_>, child: String) -> Result<(), Failure> {
    let mut client = stage.client("plain-again", &[&child])?;
    let mut finding = String::new();
    client
        .out
        .read_line(&mut finding)
        .await
        .during("read from a client")?;
    let finding = format!("client {}: {}", client.pid(), finding.trim_end());
    stage.screen.row(PLAIN_SIDE, BAD, &finding)?;
    let missing = grouped(LINES - FATAL_LINE);
    stage
        .screen
        .row(PLAIN_SIDE, BAD, &format!("{missing} lines missing"))?;
    let status = client.ended().await?;
    require(status.code() == Some(LOST.into()), || {
        format!("the plain child's status should be unknown, but its client reports {finding:?}")
    })
}

/// The events that one client of evloopd has received.
struct Life {
    header: RunHeader,
    recording: Recording,
    numbers: Numbers,
    /// The sequence number of the event after which the next client must resume.
    position: u64,
    pid: i32,
    exited: Option<Status>,
}

impl Life {
    fn begin(header: RunHeader, numbers: Numbers) -> Self {
        let recording = Recording {
            epoch: header.epoch.clone(),
            view: View::Watches,
            from_birth: !header.existed,
            ..Recording::default()
        };
        Self {
            header,
            recording,
            numbers,
            position: 0,
            pid: 0,
            exited: None,
        }
    }

    /// Takes a batch, and shows the child's lines in it up to line `last`.
    fn take(&mut self, stage: &Stage<'_>, batch: Batch, last: u64) -> Result<(), Failure> {
        for event in &batch.events {
            match &event.kind {
                Some(Kind::Started(started)) => self.pid = started.pid,
                Some(Kind::Data(data)) if data.stream() == Stream::Stdout => {
                    self.data(stage, event, data, last)?;
                }
                Some(Kind::Exited(exited)) => self.exited.clone_from(&exited.status),
                _ => {}
            }
        }
        if self.recording.batches.is_empty() {
            self.recording.start = batch.after;
        }
        self.recording.batches.push(batch);
        Ok(())
    }

    fn data(
        &mut self,
        stage: &Stage<'_>,
        event: &Event,
        data: &Data,
        last: u64,
    ) -> Result<(), Failure> {
        if self.numbers.lines() == last {
            return Ok(());
        }
        let lines = self.numbers.take(data.offset, &data.data, last)?;
        let end = data.offset + u64::try_from(data.data.len()).unwrap_or_default();
        // If the event has bytes after the last line, the next client reads it again, and skips the
        // known bytes by their offset.
        let whole = self.numbers.bytes() == end;
        self.position = if whole { event.seq } else { event.seq - 1 };
        milestones(stage, OUR_SIDE, lines)
    }
}

/// Runs the child through evloopd until its client is killed.
async fn first_life(stage: &Stage<'_>) -> Result<Life, Failure> {
    let mut client = stage.client("run", &[])?;
    let header = header(&mut client).await?;
    let of = &header.loop_name;
    let started = format!(
        "client {} started {CHILD_NAME:?} on loop {of}",
        client.pid()
    );
    stage.screen.row(OUR_SIDE, PLAIN, &started)?;
    let mut life = Life::begin(header, Numbers::default());
    while life.numbers.lines() < FATAL_LINE {
        let batch = match client.next::<RunResponse>().await?.and_then(|r| r.message) {
            Some(run_response::Message::Batch(batch)) => batch,
            other => return Err(unexpected("line 3,000", other.as_ref())),
        };
        life.take(stage, batch, FATAL_LINE)?;
    }
    kill(stage, OUR_SIDE, client).await?;
    Ok(life)
}

/// Starts a new client, which reads the rest of the output.
async fn second_life(stage: &Stage<'_>, first: &Life) -> Result<Life, Failure> {
    nobody_there(stage, first).await?;
    let after = format!("{}:{}", first.header.epoch, first.position);
    let mut client = stage.client("run", &[&after])?;
    let header = header(&mut client).await?;
    let same = header.existed && header.watch_id == first.header.watch_id;
    require(same, || "the new client started a second child".to_owned())?;
    let (pid, seq, bytes) = (client.pid(), first.position, first.numbers.bytes());
    let joined = format!(
        "client {pid} joined child {} and goes on after event {seq}, byte {}",
        first.pid,
        grouped(bytes)
    );
    stage.screen.row(OUR_SIDE, PLAIN, &joined)?;

    let mut life = Life::begin(header, first.numbers.clone());
    loop {
        match client.next::<RunResponse>().await?.and_then(|r| r.message) {
            Some(run_response::Message::Batch(batch)) => life.take(stage, batch, LINES + 1)?,
            Some(run_response::Message::Goodbye(bye)) if bye.reason() == GoodbyeReason::Done => {
                break;
            }
            other => return Err(unexpected("the rest", other.as_ref())),
        }
    }
    let status = client.ended().await?;
    require(status.success(), || format!("the client failed: {status}"))?;
    complete(stage, &life)?;
    Ok(life)
}

/// Asks evloopd for the state of the child while it has no client.
async fn nobody_there(stage: &Stage<'_>, first: &Life) -> Result<(), Failure> {
    let request = GetWatchRequest {
        r#loop: Some(LoopRef {
            r#ref: Some(loop_ref::Ref::LoopId(first.header.loop_id)),
        }),
        watch: Some(WatchRef {
            r#ref: Some(watch_ref::Ref::WatchId(first.header.watch_id)),
        }),
    };
    let answer = WatchServiceClient::new(stage.channel.clone())
        .get_watch(request)
        .await;
    let found = answer.answer("GetWatch")?.watch.unwrap_or_default();
    let Some(watch::Status::Process(process)) = found.status else {
        return Err(Failure::Missing("the child is gone".to_owned()));
    };
    let state = match process.exited {
        None => "works on, with no client",
        Some(_) => "is done, with no client",
    };
    let written = process.stdout_bytes.saturating_sub(first.numbers.bytes());
    let text = format!(
        "child {} {state}; {} bytes wait",
        process.pid,
        grouped(written)
    );
    stage.screen.row(OUR_SIDE, DIM, &text)
}

fn complete(stage: &Stage<'_>, life: &Life) -> Result<(), Failure> {
    let lines = life.numbers.lines();
    require(lines == LINES, || format!("{lines} lines of {LINES}"))?;
    let code = life.exited == Some(Status::Code(EXIT_CODE));
    require(code, || {
        format!("exit code {EXIT_CODE} is missing, it is {:?}", life.exited)
    })?;
    let lines = grouped(lines);
    let text = format!("all {lines} lines, none twice; exit code {EXIT_CODE}");
    stage.screen.row(OUR_SIDE, GOOD, &text)
}

async fn header(client: &mut Client) -> Result<RunHeader, Failure> {
    match client.next::<RunResponse>().await?.and_then(|r| r.message) {
        Some(run_response::Message::Header(header)) => Ok(header),
        other => Err(unexpected("a header", other.as_ref())),
    }
}

fn unexpected(expected: &str, got: Option<&run_response::Message>) -> Failure {
    use run_response::Message::{Batch, Goodbye, Header};

    let got = match got {
        None => "the client ended",
        Some(Goodbye(bye)) => bye.message.as_str(),
        Some(Header(_)) => "a header came",
        Some(Batch(_)) => "events came",
    };
    Failure::Missing(format!("instead of {expected}: {got}"))
}

/// Shows every thousandth line, and the first line after the kill.
fn milestones(stage: &Stage<'_>, side: &str, lines: std::ops::Range<u64>) -> Result<(), Failure> {
    for line in lines {
        if line.is_multiple_of(1000) || line == FATAL_LINE + 1 {
            stage
                .screen
                .row(side, PLAIN, &format!("line {:>6}", grouped(line)))?;
        }
    }
    Ok(())
}

async fn kill(stage: &Stage<'_>, side: &str, client: Client) -> Result<(), Failure> {
    let pid = client.pid();
    client.kill().await?;
    stage
        .screen
        .row(side, BAD, &format!("client {pid} killed with SIGKILL"))
}
