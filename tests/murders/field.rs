//! A loop under load, and the hands that the loads have on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use evloopd::proto::transport_service_client::TransportServiceClient;
use evloopd::proto::watch_service_client::WatchServiceClient;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::{Code, Status};

use crate::client::{Client, Site, is_unknown, reason};
use crate::common::{PATIENCE, by_id, loop_named};

/// One loop.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) site: Arc<Site>,
    pub(crate) backend: &'static str,
    pub(crate) target: LoopRef,
    /// Who gets the events of which watches: by the number that their registration carries as user_data. Connections belong to their listener.
    inboxes: Mutex<HashMap<u64, mpsc::UnboundedSender<Event>>>,
    /// Hashes of events that one of two readers has seen so far.
    seen: Mutex<HashMap<u64, u64>>,
}

impl Field {
    pub(crate) fn new(site: Arc<Site>, backend: &'static str) -> Self {
        Self {
            site,
            backend,
            target: loop_named(&name_of(backend)),
            inboxes: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> String {
        name_of(self.backend)
    }

    pub(crate) fn count(&self, what: &'static str, more: u64) {
        self.site.figures.count(what, more);
    }

    /// Delivers an event, or returns it if nobody waits for one with this number.
    pub(crate) fn deliver(&self, key: u64, event: Event) -> Result<(), Box<Event>> {
        let inboxes = self.inboxes.lock();
        match inboxes.get(&key) {
            Some(inbox) => inbox.send(event).map_err(|refused| Box::new(refused.0)),
            None => Err(Box::new(event)),
        }
    }

    /// Both readers of the loop must see the same.
    pub(crate) fn compare(&self, seq: u64, hash: u64) {
        let mut seen = self.seen.lock();
        if let Some(other) = seen.remove(&seq) {
            assert_eq!(other, hash, "event {seq} on {}", self.backend);
        } else {
            seen.insert(seq, hash);
        }
    }

    /// Makes a load's own connection.
    pub(crate) fn hand(self: &Arc<Self>) -> Hand {
        Hand {
            client: self.site.client(),
            field: Arc::clone(self),
        }
    }
}

/// The name of the loop. An underscore is not allowed there.
fn name_of(backend: &str) -> String {
    backend.replace('_', "-")
}

/// What a load does on its loop.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    pub(crate) field: Arc<Field>,
    pub(crate) client: Client,
}

impl Hand {
    pub(crate) fn is_over(&self) -> bool {
        self.field.site.is_over()
    }

    pub(crate) fn count(&self, what: &'static str, more: u64) {
        self.field.count(what, more);
    }

    pub(crate) fn target(&self) -> Option<LoopRef> {
        Some(self.field.target.clone())
    }

    /// Makes an inbox for the events of one registration.
    pub(crate) fn inbox(&self) -> Inbox {
        let (sender, events) = mpsc::unbounded_channel();
        let key = self.field.site.key();
        self.field.inboxes.lock().insert(key, sender);
        Inbox {
            key,
            events,
            field: Arc::clone(&self.field),
        }
    }

    /// A registration by name. So it can be asked for again when nothing tells whether it was carried out.
    pub(crate) fn request(&self, key: u64, spec: Spec) -> AddWatchRequest {
        AddWatchRequest {
            r#loop: self.target(),
            spec: Some(WatchSpec { spec: Some(spec) }),
            name: format!("watch-{key}"),
            if_exists: IfExists::Return.into(),
            request_id: key.to_string(),
            user_data: key,
            ..AddWatchRequest::default()
        }
    }

    pub(crate) async fn add(&self, inbox: &Inbox, spec: Spec) -> u64 {
        let mut request = self.request(inbox.key, spec);
        let (answer, _) = self.try_add(&mut request).await.unwrap();
        answer.watch.unwrap().watch_id
    }

    /// Adds a watch. The request becomes the one that was answered. Returns also how often nothing told
    /// whether it was carried out.
    pub(crate) async fn try_add(
        &self,
        request: &mut AddWatchRequest,
    ) -> Result<(AddWatchResponse, usize), Status> {
        let first = request.request_id.clone();
        for unknown in 0.. {
            match self.ask_to_add(request).await {
                Err(status) if is_unknown(&status) => {
                    request.request_id = format!("{first} again {unknown}");
                }
                answer => return Ok((answer?, unknown)),
            }
        }
        unreachable!("it ends with an answer")
    }

    /// Adds a watch, unless nothing tells whether that was done before.
    pub(crate) async fn ask_to_add(
        &self,
        request: &AddWatchRequest,
    ) -> Result<AddWatchResponse, Status> {
        loop {
            let answer = self.client.call("add_watch", |channel| {
                let request = request.clone();
                async move { WatchServiceClient::new(channel).add_watch(request).await }
            });
            let answer = answer.await;
            match &answer {
                // The journal has no room, until its readers have read.
                Err(status) if status.code() == Code::ResourceExhausted => {
                    self.count("registrations without room", 1);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                Err(status) if is_unknown(status) => {
                    self.count("registrations, outcome unknown", 1);
                }
                _ => {}
            }
            return answer;
        }
    }

    /// Removes a watch, and waits until that is told.
    pub(crate) async fn remove(&self, inbox: &mut Inbox, id: u64) {
        self.ask_to_remove(id).await;
        loop {
            let event = inbox.next("Removed").await;
            if event.watch_id == id && matches!(event.kind, Some(event::Kind::Removed(_))) {
                return;
            }
        }
    }

    /// Removes a watch.
    pub(crate) async fn ask_to_remove(&self, id: u64) {
        let request = RemoveWatchRequest {
            r#loop: self.target(),
            watch: by_id(id),
            request_id: format!("remove {id} of {}", self.field.backend),
        };
        let deaths = self.deaths();
        let answer = self.client.call("remove_watch", |channel| {
            let request = request.clone();
            async move { WatchServiceClient::new(channel).remove_watch(request).await }
        });
        match answer.await {
            // It was done, and the answer was lost.
            Err(status) if self.deaths() > deaths && reason(&status) == "WATCH_NOT_FOUND" => {}
            answer => drop(answer.unwrap()),
        }
    }

    pub(crate) fn deaths(&self) -> usize {
        self.field.site.deaths_so_far()
    }

    pub(crate) async fn get(&self, id: u64) -> Watch {
        let request = GetWatchRequest {
            r#loop: self.target(),
            watch: by_id(id),
        };
        let answer = self.client.call("get_watch", |channel| {
            let request = request.clone();
            async move { WatchServiceClient::new(channel).get_watch(request).await }
        });
        answer.await.unwrap().watch.unwrap()
    }

    /// Returns how much is taken now.
    pub(crate) async fn write_at(&self, id: u64, data: Bytes, offset: u64) -> Result<u64, Status> {
        let request = WriteRequest {
            r#loop: self.target(),
            watch: by_id(id),
            data,
            offset: Some(offset),
            ..WriteRequest::default()
        };
        let answer = self.client.call("write", |channel| {
            let request = request.clone();
            async move { TransportServiceClient::new(channel).write(request).await }
        });
        Ok(answer.await?.taken)
    }

    /// Writes all of it.
    pub(crate) async fn write_all(&self, id: u64, data: Bytes, offset: u64) -> Result<(), Status> {
        let end = offset + data.len() as u64;
        let mut at = offset;
        while at < end {
            let done = usize::try_from(at - offset).unwrap();
            let taken = self.write_at(id, data.slice(done..), at).await?;
            if taken == at {
                // The buffer is full.
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert!((at..=end).contains(&taken), "{taken} of {at} to {end}");
            at = taken;
        }
        self.count("bytes written", data.len() as u64);
        Ok(())
    }

    /// Ends the stream. The watch may have closed before this is repeated.
    pub(crate) async fn write_eof(&self, id: u64) {
        let request = WriteEofRequest {
            r#loop: self.target(),
            watch: by_id(id),
            request_id: format!("end {id} of {}", self.field.backend),
        };
        let answer = self.client.call("write_eof", |channel| {
            let request = request.clone();
            async move {
                TransportServiceClient::new(channel)
                    .write_eof(request)
                    .await
            }
        });
        let deaths = self.deaths();
        match answer.await {
            Err(status) if self.deaths() > deaths && reason(&status) == "WATCH_CLOSED" => {}
            answer => drop(answer.unwrap()),
        }
    }
}

/// The events of one registration. Nobody may have more of them once it is dropped.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) key: u64,
    events: mpsc::UnboundedReceiver<Event>,
    field: Arc<Field>,
}

impl Inbox {
    pub(crate) async fn next(&mut self, what: &str) -> Event {
        match tokio::time::timeout(PATIENCE, self.events.recv()).await {
            Ok(event) => event.expect("the sender is kept"),
            Err(_) => panic!(
                "{what} of registration {} never came on {}",
                self.key, self.field.backend
            ),
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.field.inboxes.lock().remove(&self.key);
    }
}
