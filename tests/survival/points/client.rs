//! A client that goes on through the deaths of its daemon: it repeats what was not answered.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use evloopd::proto::event::Kind;
use evloopd::proto::*;
use tonic::{Code, Status};

use crate::common::{Daemon, Handover, by_id, by_name, in_terminal, loop_named, refusal, shell};

/// Nothing here takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(20);

/// The name of its loop, and of its consumer.
const LOOP: &str = "scene";
pub(super) const CONSUMER: &str = "reader";

pub(super) struct Client {
    pub(super) daemon: Daemon,
    pub(super) target: LoopRef,
    /// The number of the newest request id.
    requests: u64,
    pub(super) seen: Seen,
    /// The newest acknowledgement that was confirmed.
    pub(super) acked: u64,
    /// The posts that were confirmed, and those of which nobody knows.
    pub(super) posted: Vec<u64>,
    pub(super) maybe_posted: Vec<u64>,
    /// The watches of which nobody knew whether they were added.
    pub(super) in_doubt: Vec<String>,
}

/// All events, each once.
#[derive(Debug, Default)]
pub(super) struct Seen {
    epoch: String,
    pub(super) newest: u64,
    pub(super) bytes: BTreeMap<(u64, i32), Vec<u8>>,
    pub(super) datagrams: BTreeMap<u64, Vec<Vec<u8>>>,
    pub(super) lost_datagrams: u64,
    pub(super) accepted: Vec<u64>,
    pub(super) exited: BTreeMap<u64, Exited>,
    pub(super) closed: BTreeMap<u64, Closed>,
    pub(super) removed: Vec<u64>,
    pub(super) posted: Vec<u64>,
    pub(super) ticks: u64,
    pub(super) recovered: u64,
}

impl Seen {
    pub(super) fn of(&self, id: u64, stream: Stream) -> &[u8] {
        let bytes = self.bytes.get(&(id, stream.into()));
        bytes.map_or(&[], Vec::as_slice)
    }

    fn take(&mut self, event: Event) {
        assert_eq!(event.seq, self.newest + 1);
        self.newest = event.seq;
        let id = event.watch_id;
        match event.kind.expect("a kind") {
            Kind::Data(data) => {
                let bytes = self.bytes.entry((id, data.stream)).or_default();
                assert_eq!(data.offset, bytes.len() as u64, "watch {id}");
                bytes.extend_from_slice(&data.data);
            }
            Kind::StreamEnd(end) => {
                let bytes = self.bytes.entry((id, end.stream)).or_default();
                assert_eq!(end.offset, bytes.len() as u64, "watch {id}");
                assert_eq!(end.reason(), StreamEndReason::Eof, "{end:?}");
            }
            Kind::Datagram(datagram) => {
                self.datagrams
                    .entry(id)
                    .or_default()
                    .push(datagram.data.to_vec());
            }
            Kind::DatagramsDropped(dropped) => {
                self.lost_datagrams += dropped.count + dropped.in_doubt;
            }
            Kind::Accepted(accepted) => self.accepted.push(accepted.watch_id),
            Kind::Exited(exited) => assert!(self.exited.insert(id, exited).is_none(), "{id}"),
            Kind::Closed(closed) => assert!(self.closed.insert(id, closed).is_none(), "{id}"),
            Kind::Removed(_) => self.removed.push(id),
            Kind::Posted(posted) => self.posted.push(posted.topic.parse().unwrap()),
            Kind::TimerFired(fired) => {
                self.ticks += 1 + fired.missed;
                assert_eq!(fired.tick, self.ticks);
            }
            Kind::Recovered(_) => self.recovered += 1,
            _ => {}
        }
    }
}

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let answer = tokio::time::timeout(PATIENCE, future).await;
    answer.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// Returns whether the daemon itself has answered so.
fn is_answer(status: &Status) -> bool {
    !refusal(status).reason.is_empty()
}

/// Calls until the daemon answers.
pub(super) async fn repeat<T>(
    what: &str,
    mut call: impl AsyncFnMut() -> Result<T, Status>,
) -> Result<T, Status> {
    within(what, async {
        loop {
            match call().await {
                Err(status) if !is_answer(&status) => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    })
    .await
}

fn is_unknown(status: &Status) -> bool {
    refusal(status).reason == "OUTCOME_UNKNOWN"
}

impl Client {
    /// Makes its loop and its consumer.
    pub(super) async fn new(daemon: Daemon, (policy, backend): (&str, &str)) -> Self {
        let mut client = Self {
            daemon,
            target: loop_named(LOOP),
            requests: 0,
            seen: Seen::default(),
            acked: 0,
            posted: Vec::new(),
            maybe_posted: Vec::new(),
            in_doubt: Vec::new(),
        };
        loop {
            let request = NewEventLoopRequest {
                name: LOOP.into(),
                policy: policy.into(),
                backend: backend.into(),
                if_exists: IfExists::Return.into(),
                request_id: client.request_id(),
                ..NewEventLoopRequest::default()
            };
            let make = async || {
                let mut policies = client.daemon.policies();
                policies.new_event_loop(request.clone()).await
            };
            match repeat("a loop", make).await {
                Ok(_) => break,
                Err(status) => assert!(is_unknown(&status), "{status:?}"),
            }
        }
        client.seen.epoch = client.info().await.journal.unwrap().epoch;
        loop {
            let request = CreateConsumerRequest {
                r#loop: Some(client.target.clone()),
                name: CONSUMER.into(),
                start: Some(create_consumer_request::Start::StartAt(
                    StartAt::Oldest.into(),
                )),
                if_exists: IfExists::Return.into(),
                request_id: client.request_id(),
                ..CreateConsumerRequest::default()
            };
            let make = async || {
                let mut events = client.daemon.events();
                events.create_consumer(request.clone()).await
            };
            match repeat("a consumer", make).await {
                Ok(_) => break,
                Err(status) => assert!(is_unknown(&status), "{status:?}"),
            }
        }
        client
    }

    fn request_id(&mut self) -> String {
        self.requests += 1;
        self.requests.to_string()
    }

    pub(super) async fn info(&self) -> Loop {
        let request = GetLoopRequest {
            r#loop: Some(self.target.clone()),
        };
        let get = async || self.daemon.loops().get_loop(request.clone()).await;
        let answer = repeat("the loop", get).await.unwrap();
        answer.into_inner().r#loop.unwrap()
    }

    pub(super) async fn status(&self) -> GetStatusResponse {
        let get = async || self.daemon.admin().get_status(GetStatusRequest {}).await;
        repeat("the status", get).await.unwrap().into_inner()
    }

    pub(super) async fn pid(&self) -> i32 {
        let request = GetServerInfoRequest {};
        let get = async || self.daemon.admin().get_server_info(request).await;
        repeat("the daemon", get).await.unwrap().into_inner().pid
    }

    pub(super) async fn find(&self, watch: Option<WatchRef>) -> Option<Watch> {
        let request = GetWatchRequest {
            r#loop: Some(self.target.clone()),
            watch,
        };
        let get = async || self.daemon.watches().get_watch(request.clone()).await;
        match repeat("a watch", get).await {
            Ok(answer) => answer.into_inner().watch,
            Err(status) if status.code() == Code::NotFound => None,
            Err(status) => panic!("{status:?}"),
        }
    }

    pub(super) async fn get(&self, id: u64) -> Watch {
        self.find(by_id(id)).await.expect("it exists")
    }

    /// Adds a watch. `spec` is called again if what it has given must be given again.
    pub(super) async fn add(
        &mut self,
        name: &str,
        mut spec: impl AsyncFnMut(&Daemon) -> watch_spec::Spec,
    ) -> u64 {
        loop {
            let request = AddWatchRequest {
                r#loop: Some(self.target.clone()),
                name: name.into(),
                spec: Some(WatchSpec {
                    spec: Some(spec(&self.daemon).await),
                }),
                request_id: self.request_id(),
                ..AddWatchRequest::default()
            };
            let add = async || self.daemon.watches().add_watch(request.clone()).await;
            match repeat("a new watch", add).await {
                Ok(answer) => return answer.into_inner().watch.unwrap().watch_id,
                Err(status) if is_unknown(&status) => {
                    self.in_doubt.push(name.into());
                    if let Some(watch) = self.find(by_name(name)).await {
                        return watch.watch_id;
                    }
                }
                // The slot has ended with its life.
                Err(status) if refusal(&status).reason.contains("SLOT") => {}
                Err(status) => panic!("{status:?}"),
            }
        }
    }

    /// Adds a child that first writes its pid to a file of its name, and then executes the line. Returns
    /// its watch and its pid.
    pub(super) async fn start(&mut self, name: &str, line: &str, terminal: bool) -> (u64, i32) {
        let path = self.daemon.dir.path().join(name);
        let spec = ProcessSpec {
            stdin: Stdio::Pipe.into(),
            ..shell(&format!("echo $$ >> {}; {line}", path.display()))
        };
        let spec = if terminal { in_terminal(spec) } else { spec };
        let add = async |_: &Daemon| watch_spec::Spec::Process(spec.clone());
        let id = self.add(name, add).await;
        match self.get(id).await.status {
            Some(watch::Status::Process(process)) => (id, process.pid),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the pids that children of that name have written.
    pub(super) fn pids(&self, name: &str) -> Vec<i32> {
        let path = self.daemon.dir.path().join(name);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Checks that a child was started once, and that no other lives that was to have its
    /// name.
    pub(super) fn check_started(&self, name: &str, pid: i32) {
        let path = self.daemon.dir.path().join(name);
        let pids = self.pids(name);
        let known = pids.iter().filter(|one| **one == pid).count();
        assert_eq!(known, 1, "{name}: {pid} of {pids:?}");
        let others: Vec<_> = pids.iter().filter(|one| **one != pid).collect();
        // The client was told that nobody knows what became of its request.
        let in_doubt = self.in_doubt.iter().filter(|one| *one == name).count();
        assert!(others.len() <= in_doubt, "{name}: {pid} of {pids:?}");
        for other in others {
            let line = std::fs::read_to_string(format!("/proc/{other}/cmdline"));
            let lives = line.is_ok_and(|line| line.contains(path.to_str().unwrap()));
            assert!(!lives, "{name}: {other} still lives");
        }
    }

    /// Returns how a child has ended, if it was told.
    pub(super) fn exit_of(&self, id: u64) -> Option<exited::Status> {
        self.seen.exited.get(&id)?.status.clone()
    }

    pub(super) async fn remove(&mut self, id: u64) {
        let request = RemoveWatchRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(id),
            request_id: self.request_id(),
        };
        let remove = async || self.daemon.watches().remove_watch(request.clone()).await;
        match repeat("a removal", remove).await {
            Ok(_) => {}
            // An earlier call has removed it.
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{status:?}"),
        }
        assert_eq!(self.find(by_id(id)).await, None);
    }

    pub(super) async fn post(&mut self, number: u64) {
        let request = PostRequest {
            r#loop: Some(self.target.clone()),
            posts: vec![crate::common::post(&number.to_string(), b"told")],
            request_id: self.request_id(),
        };
        let post = async || self.daemon.events().post(request.clone()).await;
        match repeat("a post", post).await {
            Ok(_) => self.posted.push(number),
            Err(status) => {
                assert!(is_unknown(&status), "{status:?}");
                self.maybe_posted.push(number);
            }
        }
    }

    /// Acknowledges all that it has seen.
    pub(super) async fn acknowledge(&mut self) {
        let before = self.consumer().await.acked.unwrap();
        assert_eq!(before.seq, self.acked, "what was confirmed");
        let request = AckRequest {
            r#loop: Some(self.target.clone()),
            consumer: CONSUMER.into(),
            cursor: Some(Cursor {
                epoch: self.seen.epoch.clone(),
                seq: self.seen.newest,
            }),
            request_id: self.request_id(),
        };
        let ack = async || self.daemon.events().ack(request.clone()).await;
        repeat("an acknowledgement", ack).await.unwrap();
        self.acked = self.seen.newest;
    }

    pub(super) async fn consumer(&self) -> Consumer {
        let request = GetConsumerRequest {
            r#loop: Some(self.target.clone()),
            name: CONSUMER.into(),
        };
        let get = async || self.daemon.events().get_consumer(request.clone()).await;
        let answer = repeat("the consumer", get).await.unwrap();
        answer.into_inner().consumer.unwrap()
    }

    /// Writes the bytes from `taken` on up to `end`, and the end of the stream after the last one.
    pub(super) async fn write(&self, id: u64, bytes: &[u8], taken: &mut usize, end: usize) {
        while *taken < end {
            let request = WriteRequest {
                r#loop: Some(self.target.clone()),
                watch: by_id(id),
                data: bytes[*taken..end].to_vec().into(),
                offset: Some(*taken as u64),
                ..WriteRequest::default()
            };
            let write = async || self.daemon.transports().write(request.clone()).await;
            let answer = match repeat("a write", write).await {
                Ok(answer) => answer.into_inner(),
                // An earlier call has written all that was read, or the stream is lost.
                Err(status) => {
                    assert_eq!(refusal(&status).reason, "WATCH_CLOSED", "{status:?}");
                    *taken = end;
                    return;
                }
            };
            let now = usize::try_from(answer.taken).unwrap();
            assert!(now >= *taken && now <= end, "{now} of {end}");
            *taken = now;
        }
    }

    pub(super) async fn write_eof(&self, id: u64) {
        let request = WriteEofRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(id),
            ..WriteEofRequest::default()
        };
        let write = async || self.daemon.transports().write_eof(request.clone()).await;
        match repeat("the end", write).await {
            Ok(_) => {}
            // An earlier call has ended the stream, and its watch has closed since.
            Err(status) => assert_eq!(refusal(&status).reason, "WATCH_CLOSED", "{status:?}"),
        }
    }

    /// Reads until `done`, through all lives.
    pub(super) async fn until(&mut self, what: &str, done: impl Fn(&Seen) -> bool) {
        let (daemon, target, seen) = (&self.daemon, &self.target, &mut self.seen);
        let read = async {
            while !done(seen) {
                let request = SubscribeRequest {
                    r#loop: Some(target.clone()),
                    start: Some(subscribe_request::Start::After(Cursor {
                        epoch: seen.epoch.clone(),
                        seq: seen.newest,
                    })),
                    ..SubscribeRequest::default()
                };
                let mut stream = match daemon.events().subscribe(request).await {
                    Ok(stream) => stream.into_inner(),
                    Err(status) => {
                        assert!(!is_answer(&status), "{status:?}");
                        continue;
                    }
                };
                while !done(seen) {
                    let Ok(Some(message)) = stream.message().await else {
                        break;
                    };
                    if let Some(subscribe_response::Message::Batch(batch)) = message.message {
                        assert!(batch.gaps.is_empty(), "{:?}", batch.gaps);
                        batch.events.into_iter().for_each(|event| seen.take(event));
                    }
                }
            }
        };
        let read = tokio::time::timeout(PATIENCE, read).await;
        assert!(read.is_ok(), "waited too long for {what}: {seen:?}");
    }
}

/// Hands a descriptor over, to whichever life takes it.
pub(super) async fn give(daemon: &Daemon, fd: impl AsFd) -> bytes::Bytes {
    loop {
        let info = async || {
            daemon
                .admin()
                .get_server_info(GetServerInfoRequest {})
                .await
        };
        let info = repeat("the daemon", info).await.unwrap().into_inner();
        let copy: OwnedFd = fd.as_fd().try_clone_to_owned().unwrap();
        // It panics if the daemon dies.
        let given = tokio::task::spawn_blocking(move || {
            Handover::connect(Path::new(&info.handover_socket)).give(&copy)
        });
        if let Ok(slot) = given.await {
            return slot;
        }
    }
}
