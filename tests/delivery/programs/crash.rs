//! Programs in which the daemon is killed: what the next life must have.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use evloopd::history::Recording;
use evloopd::proto::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CONFIG, CONSUMERS, READERS, Reader, Run, may_refuse, payloads};
use crate::common::{Daemon, command_with_keeper, directory, refusal, within};

/// Starts a daemon with a keeper, which starts the next life soon.
pub(super) async fn start() -> Daemon {
    let server = "version = 1\n[server]\nrestarts = 1000\nrestart_delay = \"1ms\"\n";
    let dir = directory();
    let command = command_with_keeper(dir.path(), &format!("{server}{CONFIG}"), &[]);
    Daemon::start_as(Arc::clone(&dir), command).await
}

/// What the daemon says of a loop.
struct Told {
    of: Loop,
    watches: BTreeMap<u64, Watch>,
    /// How far each consumer has acknowledged.
    acked: BTreeMap<String, u64>,
}

impl Run<'_> {
    /// Kills the daemon, and checks that its next life goes on with all that was told. With a count, a
    /// size and microseconds, it is killed that long after such a Post was sent.
    ///
    /// A step that kills the keeper, too, starts another daemon on the same directory in place of the
    /// wait for the next life.
    pub(super) async fn crash(&mut self, amid: Option<(usize, usize, u64)>) {
        let before = self.told().await;
        let life = self.daemon.status().await.keeper.unwrap().life;
        let pid = Pid::from_raw(self.daemon.info().await.pid);
        let murder = move || kill(pid, Signal::SIGKILL).unwrap();
        let posted = match amid {
            None => {
                murder();
                None
            }
            Some((count, size, micros)) => {
                let request = PostRequest {
                    request_id: format!("life-{life}"),
                    ..self.posts(count, size)
                };
                let killer = std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_micros(micros));
                    murder();
                });
                let answer = self.daemon.events().post(request.clone()).await;
                killer.join().unwrap();
                Some((request, answer))
            }
        };
        next_life(self.daemon, life).await;
        if let Some((request, answer)) = posted {
            self.settle(request, answer).await;
        }
        self.resume_readers().await;
        self.compare(&before, &self.told().await);
    }

    /// Repeats a Post whose answer did not arrive.
    async fn settle(
        &mut self,
        request: PostRequest,
        answer: Result<tonic::Response<PostResponse>, tonic::Status>,
    ) {
        let payloads = payloads(&request);
        let again = self.daemon.events().post(request).await;
        match (answer, again) {
            (Ok(first), Ok(again)) => {
                let first = first.into_inner();
                assert_eq!(first, again.into_inner());
                self.was_posted(payloads, &first);
            }
            (Ok(first), Err(status)) => panic!("{first:?}, and again: {status:?}"),
            (Err(_), Ok(again)) => self.was_posted(payloads, &again.into_inner()),
            (Err(_), Err(status)) if refusal(&status).reason == "OUTCOME_UNKNOWN" => {
                self.unsure.push((payloads, None));
            }
            (Err(_), Err(status)) => assert!(may_refuse(&status), "{status:?}"),
        }
    }

    /// Lets all readers go on after what they have received.
    async fn resume_readers(&mut self) {
        for who in 0..READERS {
            let Some(mut reader) = self.readers[who].take() else {
                continue;
            };
            reader.recorder.take_rest().await;
            if reader.recorder.goodbye.is_some() {
                self.readers[who] = Some(reader);
                self.retire(who);
                continue;
            }
            let Reader {
                recorder,
                consumer,
                mut before,
            } = reader;
            let start = subscribe_request::Start::After(Cursor {
                epoch: recorder.recording.epoch.clone(),
                seq: recorder.recording.through(),
            });
            before.push(recorder.recording);
            self.subscribe_from(who, consumer, start, before).await;
        }
    }

    async fn told(&self) -> Told {
        let target = Some(self.target.clone());
        let request = GetLoopRequest {
            r#loop: target.clone(),
        };
        let of = self.daemon.loops().get_loop(request).await.unwrap();
        let request = ListWatchesRequest {
            r#loop: target.clone(),
            ..ListWatchesRequest::default()
        };
        let watches = self.daemon.watches().list_watches(request).await.unwrap();
        let watches = watches.into_inner().watches.into_iter();
        let request = ListConsumersRequest {
            r#loop: target,
            ..ListConsumersRequest::default()
        };
        let consumers = self.daemon.events().list_consumers(request).await.unwrap();
        let consumers = consumers.into_inner().consumers.into_iter();
        Told {
            of: of.into_inner().r#loop.unwrap(),
            watches: watches.map(|watch| (watch.watch_id, watch)).collect(),
            acked: consumers
                .map(|consumer| (consumer.name, consumer.acked.unwrap().seq))
                .collect(),
        }
    }

    fn compare(&self, before: &Told, after: &Told) {
        let same = |of: &Loop| (of.loop_id, of.created, of.state());
        assert_eq!(same(&before.of), same(&after.of));
        let [was, is] = [before, after].map(|told| told.of.journal.as_ref().unwrap());
        assert_eq!(was.epoch, is.epoch);
        let resumed = self.readers.iter().flatten();
        let received = self
            .all
            .iter()
            .chain(resumed.flat_map(|reader| &reader.before));
        let received = received.map(Recording::through).max().unwrap_or(0);
        let told = was.newest_seq.max(received);
        assert!(told < is.newest_seq, "{told}, then {}", is.newest_seq);
        for (id, watch) in &before.watches {
            let kept = |watch: &Watch| (watch.name.clone(), watch.user_data, watch.spec.clone());
            let now = after.watches.get(id);
            assert_eq!(now.map(kept), Some(kept(watch)));
        }
        let names = |told: &Told| told.acked.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(before), names(after));
        for (name, was) in &before.acked {
            let auto = CONSUMERS.iter().position(|of| of == name);
            let is = after.acked[name];
            // An acknowledgement by auto_ack may come at any time.
            let may_move = auto.is_some_and(|at| self.auto[at]);
            assert!(is == *was || may_move && is > *was, "{name}: {was}, {is}");
        }
    }
}

/// Waits until a life after this one serves.
async fn next_life(daemon: &Daemon, life: u64) {
    within("the next life", async {
        loop {
            // The channel connects again by itself.
            let status = daemon.admin().get_status(GetStatusRequest {}).await;
            let now = status.ok().and_then(|status| status.into_inner().keeper);
            if now.is_some_and(|now| now.life > life) {
                return;
            }
        }
    })
    .await;
}
