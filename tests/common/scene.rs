//! A loop with a recorder of its events, and the calls that tests make on it.

use evloopd::history::{check_fence, check_removal_fence};
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use tonic::Status;

use super::{Daemon, Recorder, by_id, loop_named, within};

/// The consumer of a slow reader.
const SLOW: &str = "slow";

/// One loop of a daemon. Everything on it is recorded from the start.
pub(crate) struct Scene {
    /// Declared before the daemon and so dropped before it: the daemon need not wait for this
    /// stream.
    pub(crate) recorder: Recorder,
    pub(crate) daemon: Daemon,
    pub(crate) target: LoopRef,
    added: Vec<(u64, u64)>,
    removed: Vec<(u64, u64)>,
}

impl Scene {
    /// Makes the loop `scene` with that policy and backend; empty means the default.
    pub(crate) async fn new(daemon: Daemon, policy: &str, backend: &str) -> Self {
        let request = NewEventLoopRequest {
            name: "scene".into(),
            policy: policy.into(),
            backend: backend.into(),
            ..NewEventLoopRequest::default()
        };
        daemon.policies().new_event_loop(request).await.unwrap();
        let target = loop_named("scene");
        let recorder = Recorder::of(&daemon, &target).await;
        Self {
            recorder,
            daemon,
            target,
            added: Vec::new(),
            removed: Vec::new(),
        }
    }

    /// Returns a request that adds a watch to this loop.
    pub(crate) fn request(&self, spec: Spec) -> AddWatchRequest {
        AddWatchRequest {
            r#loop: Some(self.target.clone()),
            spec: Some(WatchSpec { spec: Some(spec) }),
            ..AddWatchRequest::default()
        }
    }

    pub(crate) async fn try_add(
        &mut self,
        request: AddWatchRequest,
    ) -> Result<AddWatchResponse, Status> {
        let answer = self.daemon.watches().add_watch(request).await?.into_inner();
        let id = answer.watch.as_ref().expect("the watch").watch_id;
        self.added
            .push((answer.added.as_ref().expect("its Added").seq, id));
        Ok(answer)
    }

    /// Adds a watch and returns its id.
    pub(crate) async fn add(&mut self, spec: Spec) -> u64 {
        let request = self.request(spec);
        let answer = self.try_add(request).await.unwrap();
        answer.watch.expect("the watch").watch_id
    }

    pub(crate) async fn spawn(&mut self, spec: ProcessSpec) -> u64 {
        self.add(Spec::Process(spec)).await
    }

    pub(crate) async fn remove(&mut self, watch_id: u64) -> u64 {
        let request = RemoveWatchRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            ..RemoveWatchRequest::default()
        };
        let answer = self.daemon.watches().remove_watch(request).await.unwrap();
        let removed = answer.into_inner().removed.expect("its Removed").seq;
        self.removed.push((removed, watch_id));
        removed
    }

    pub(crate) async fn get(&self, watch_id: u64) -> Watch {
        let request = GetWatchRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
        };
        let answer = self.daemon.watches().get_watch(request).await.unwrap();
        answer.into_inner().watch.expect("the watch")
    }

    pub(crate) async fn open_watches(&self) -> u64 {
        let request = GetLoopRequest {
            r#loop: Some(self.target.clone()),
        };
        let answer = self.daemon.loops().get_loop(request).await.unwrap();
        answer.into_inner().r#loop.expect("the loop").open_watches
    }

    /// Returns the status of a child.
    pub(crate) async fn process(&self, watch_id: u64) -> ProcessStatus {
        match self.get(watch_id).await.status {
            Some(watch::Status::Process(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `wanted` holds for the child's status.
    pub(crate) async fn process_until(
        &self,
        watch_id: u64,
        what: &str,
        wanted: impl Fn(&ProcessStatus) -> bool,
    ) {
        within(what, async {
            while !wanted(&self.process(watch_id).await) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Stops the loop and returns the sequence number of the stop.
    pub(crate) async fn stop(&self) -> u64 {
        let request = StopLoopRequest {
            r#loop: Some(self.target.clone()),
            ..StopLoopRequest::default()
        };
        let answer = self.daemon.loops().stop_loop(request).await.unwrap();
        answer.into_inner().cursor.expect("its last event").seq
    }

    /// Runs the loop again.
    pub(crate) async fn run(&self) {
        let request = RunLoopRequest {
            r#loop: Some(self.target.clone()),
            ..RunLoopRequest::default()
        };
        self.daemon.loops().run_loop(request).await.unwrap();
    }

    pub(crate) async fn rearm(&self, item: RearmItem) -> bool {
        let request = RearmRequest {
            r#loop: Some(self.target.clone()),
            items: vec![item],
            ..RearmRequest::default()
        };
        let answer = self.daemon.watches().rearm(request).await.unwrap();
        answer.into_inner().armed == [true]
    }

    pub(crate) async fn write(&self, watch_id: u64, data: &[u8]) -> u64 {
        self.write_at(watch_id, data, None).await.unwrap().taken
    }

    pub(crate) async fn write_at(
        &self,
        watch_id: u64,
        data: &[u8],
        offset: Option<u64>,
    ) -> Result<WriteResponse, Status> {
        let request = WriteRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            data: bytes::Bytes::copy_from_slice(data),
            offset,
            ..WriteRequest::default()
        };
        let answer = self.daemon.transports().write(request).await?;
        Ok(answer.into_inner())
    }

    /// Sends a datagram; without a peer to the one that the socket is connected to.
    pub(crate) async fn send_to(
        &self,
        watch_id: u64,
        data: &[u8],
        peer: Option<SocketAddress>,
    ) -> Result<u64, Status> {
        let request = SendToRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            data: bytes::Bytes::copy_from_slice(data),
            peer,
            ..SendToRequest::default()
        };
        let answer = self.daemon.transports().send_to(request).await?;
        Ok(answer.into_inner().buffered_bytes)
    }

    /// Moves the water marks, and returns them as the daemon has them.
    pub(crate) async fn set_water_marks(
        &self,
        watch_id: u64,
        marks: Option<WaterMarks>,
    ) -> Result<WaterMarks, Status> {
        let request = SetWaterMarksRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            water_marks: marks,
            ..SetWaterMarksRequest::default()
        };
        let answer = self.daemon.transports().set_water_marks(request).await?;
        Ok(answer.into_inner().water_marks.expect("the marks"))
    }

    /// Makes a datagram socket a member of a group on the loopback interface.
    pub(crate) async fn join(&self, watch_id: u64, ip: &str) -> Result<(), Status> {
        let request = JoinGroupRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            group: Some(super::on_loopback(ip)),
            ..JoinGroupRequest::default()
        };
        let answer = self.daemon.transports().join_group(request).await?;
        let JoinGroupResponse {} = answer.into_inner();
        Ok(())
    }

    /// Ends such a membership.
    pub(crate) async fn leave(&self, watch_id: u64, ip: &str) -> Result<(), Status> {
        let request = LeaveGroupRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            group: Some(super::on_loopback(ip)),
            ..LeaveGroupRequest::default()
        };
        let answer = self.daemon.transports().leave_group(request).await?;
        let LeaveGroupResponse {} = answer.into_inner();
        Ok(())
    }

    /// Pauses or resumes reading.
    pub(crate) async fn pause_reading(&self, watch_id: u64, pause: bool) {
        let (target, watch) = (Some(self.target.clone()), by_id(watch_id));
        let mut transports = self.daemon.transports();
        if pause {
            let request = PauseReadingRequest {
                r#loop: target,
                watch,
                ..PauseReadingRequest::default()
            };
            transports.pause_reading(request).await.unwrap();
        } else {
            let request = ResumeReadingRequest {
                r#loop: target,
                watch,
                ..ResumeReadingRequest::default()
            };
            transports.resume_reading(request).await.unwrap();
        }
    }

    /// Returns the status of a datagram socket.
    pub(crate) async fn datagram(&self, watch_id: u64) -> DatagramStatus {
        match self.get(watch_id).await.status {
            Some(watch::Status::Datagram(status)) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Returns the datagram of a watch that has this number, from 0.
    pub(crate) async fn datagram_at(&mut self, watch_id: u64, nth: usize) -> Datagram {
        match self.recorder.nth(watch_id, "datagram", nth + 1).await.kind {
            Some(event::Kind::Datagram(datagram)) => datagram,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn write_eof(&self, watch_id: u64) {
        self.try_write_eof(watch_id).await.unwrap();
    }

    pub(crate) async fn try_write_eof(&self, watch_id: u64) -> Result<(), Status> {
        let request = WriteEofRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            ..WriteEofRequest::default()
        };
        let answer = self.daemon.transports().write_eof(request).await?;
        let WriteEofResponse {} = answer.into_inner();
        Ok(())
    }

    /// Changes the size of a child's terminal.
    pub(crate) async fn resize(
        &self,
        watch_id: u64,
        rows: u32,
        columns: u32,
    ) -> Result<(), Status> {
        let request = ResizePtyRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            size: Some(TerminalSize { rows, columns }),
            ..ResizePtyRequest::default()
        };
        let answer = self.daemon.processes().resize_pty(request).await?;
        let ResizePtyResponse {} = answer.into_inner();
        Ok(())
    }

    /// Returns the status of a child's terminal.
    pub(crate) async fn terminal(&self, watch_id: u64) -> TerminalStatus {
        self.process(watch_id).await.terminal.expect("a terminal")
    }

    /// Returns the end of a child's stream.
    pub(crate) async fn stream_end(&mut self, watch_id: u64) -> StreamEnd {
        match self.recorder.first(watch_id, "stream_end").await.kind {
            Some(event::Kind::StreamEnd(end)) => end,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a stream of the watch contains `text`, and returns all of it.
    pub(crate) async fn output(&mut self, watch_id: u64, text: &str) -> String {
        within(text, async {
            loop {
                let bytes = self.recorder.bytes(watch_id, Stream::Stdout);
                let all = String::from_utf8_lossy(&bytes).into_owned();
                if all.contains(text) {
                    return all;
                }
                assert!(self.recorder.step().await, "the stream ended: {all:?}");
            }
        })
        .await
    }

    pub(crate) async fn post(&self, posts: Vec<Post>) -> u64 {
        let request = PostRequest {
            r#loop: Some(self.target.clone()),
            posts,
            ..PostRequest::default()
        };
        let answer = self.daemon.events().post(request).await.unwrap();
        answer.into_inner().cursor.expect("the last Posted").seq
    }

    pub(crate) async fn send_signal(&self, watch_id: u64, signal: &str, target: SignalTarget) {
        let request = SendSignalRequest {
            r#loop: Some(self.target.clone()),
            watch: by_id(watch_id),
            signal: signal.into(),
            target: target.into(),
            ..SendSignalRequest::default()
        };
        self.daemon.processes().send_signal(request).await.unwrap();
    }

    /// Waits until the watch is closed.
    pub(crate) async fn closed(&mut self, watch_id: u64) -> Closed {
        match self.recorder.first(watch_id, "closed").await.kind {
            Some(event::Kind::Closed(closed)) => closed,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the child has started and returns its process id.
    pub(crate) async fn started(&mut self, watch_id: u64) -> i32 {
        match self.recorder.first(watch_id, "started").await.kind {
            Some(event::Kind::Started(started)) => started.pid,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn exited(&mut self, watch_id: u64) -> Exited {
        match self.recorder.first(watch_id, "exited").await.kind {
            Some(event::Kind::Exited(exited)) => exited,
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the recording has everything that the loop has done so far.
    ///
    /// A post is appended after all that the loop did in the same turn and in earlier ones.
    pub(crate) async fn settle(&mut self) -> u64 {
        let seq = self.post(vec![super::post("settle", b"")]).await;
        self.recorder.reach(seq).await;
        seq
    }

    /// Returns a reader of all events that acknowledges none by itself.
    pub(crate) async fn slow_reader(&self) -> Recorder {
        let request = SubscribeRequest {
            r#loop: Some(self.target.clone()),
            start: Some(subscribe_request::Start::StartAt(StartAt::Oldest.into())),
            consumer: SLOW.into(),
            ..SubscribeRequest::default()
        };
        Recorder::subscribe(&self.daemon, request).await.unwrap()
    }

    /// Acknowledges what a [slow reader](Self::slow_reader) has read.
    pub(crate) async fn acknowledge(&self, slow: &Recorder) {
        let request = AckRequest {
            r#loop: Some(self.target.clone()),
            consumer: SLOW.into(),
            cursor: Some(Cursor {
                epoch: String::new(),
                seq: slow.recording.through(),
            }),
            ..AckRequest::default()
        };
        self.daemon.events().ack(request).await.unwrap();
    }

    /// Checks that the replies and the stream agree about every registration.
    pub(crate) async fn finish(mut self) {
        self.settle().await;
        for (seq, id) in &self.added {
            check_fence(*seq, *id, &self.recorder.recording).unwrap();
        }
        for (seq, id) in &self.removed {
            check_removal_fence(*seq, *id, &self.recorder.recording).unwrap();
        }
    }
}
