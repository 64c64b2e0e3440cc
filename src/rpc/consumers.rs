//! The calls of the EventService about consumers.

use super::subscribe::ttl;
use super::{Api, Requester, convert, mutate, object};
use crate::clock::{self, Now};
use crate::error::{Error, Result};
use crate::event_loop::Handle;
use crate::journal::{ConsumerStatus, Start};
use crate::policy::check_loop_name;
use crate::proto::{
    self, Consumer, CreateConsumerRequest, CreateConsumerResponse, DeleteConsumerRequest,
    DeleteConsumerResponse, GetConsumerRequest, GetConsumerResponse, ListConsumersRequest,
    ListConsumersResponse, StartAt, create_consumer_request,
};

fn describe(on: &Handle, status: ConsumerStatus) -> Consumer {
    let now = Now::sample();
    let at = |left: std::time::Duration| now.realtime.saturating_add(clock::nanos(left));
    Consumer {
        name: status.name,
        acked: Some(on.journal().cursor(status.acked).into()),
        lag_events: status.lag_events,
        lag_bytes: status.lag_bytes,
        lost_events: status.lost_events,
        held: status.held,
        ttl: Some(clock::duration(status.ttl)),
        expires: status.expires_in.map(|left| clock::timestamp(at(left))),
        created: Some(clock::timestamp(status.created)),
        takeovers: status.takeovers,
        survives: proto::Survives::from(on.survives()).into(),
    }
}

fn start(request: &CreateConsumerRequest) -> Result<Start> {
    let at = match &request.start {
        None => StartAt::Now,
        Some(create_consumer_request::Start::After(cursor)) => {
            let cursor = convert::cursor("after", cursor)?;
            return Ok(Start::After {
                cursor,
                skip: false,
            });
        }
        Some(create_consumer_request::Start::StartAt(at)) => {
            StartAt::try_from(*at).unwrap_or(StartAt::Snapshot)
        }
    };
    match at {
        StartAt::Unspecified | StartAt::Now => Ok(Start::Now),
        StartAt::Oldest => Ok(Start::Oldest),
        StartAt::Snapshot => Err(Error::invalid("start_at", "must be NOW or OLDEST")),
    }
}

impl Api {
    pub(super) async fn consumer_created(
        self,
        requester: Requester,
        request: CreateConsumerRequest,
    ) -> Result<CreateConsumerResponse> {
        check_loop_name("name", &request.name)?;
        let (start, ttl) = (start(&request)?, ttl("ttl", request.ttl)?);
        let or_existing = convert::if_exists(request.if_exists)?;
        let on = self.on(&requester, request.r#loop, true)?;
        convert::can_consume("loop", &on)?;
        let object = object(&on, &request.name);
        mutate(&requester, "CreateConsumer", object, async move {
            let created = on.journal().create_consumer(&request.name, start, ttl)?;
            if !created && !or_existing {
                return Err(Error::NameTaken {
                    what: "consumer",
                    name: request.name,
                    differs: None,
                });
            }
            let status = on.journal().consumer(&request.name)?;
            Ok(CreateConsumerResponse {
                consumer: Some(describe(&on, status)),
                created,
            })
        })
        .await
    }

    pub(super) fn consumers_listed(
        &self,
        requester: &Requester,
        request: ListConsumersRequest,
    ) -> Result<ListConsumersResponse> {
        let (size, _) = convert::page(request.page_size, "")?;
        let on = self.on(requester, request.r#loop, false)?;
        let mut page = on.journal().consumers(&request.page_token, size + 1);
        let more = page.len() > size;
        page.truncate(size);
        let last = page.last().filter(|_| more);
        Ok(ListConsumersResponse {
            next_page_token: last.map(|last| last.name.clone()).unwrap_or_default(),
            consumers: page.into_iter().map(|c| describe(&on, c)).collect(),
        })
    }

    pub(super) fn consumer_described(
        &self,
        requester: &Requester,
        request: GetConsumerRequest,
    ) -> Result<GetConsumerResponse> {
        let on = self.on(requester, request.r#loop, false)?;
        let status = on.journal().consumer(&request.name)?;
        Ok(GetConsumerResponse {
            consumer: Some(describe(&on, status)),
        })
    }

    pub(super) async fn consumer_deleted(
        self,
        requester: Requester,
        request: DeleteConsumerRequest,
    ) -> Result<DeleteConsumerResponse> {
        let on = self.on(&requester, request.r#loop, false)?;
        let object = object(&on, &request.name);
        mutate(&requester, "DeleteConsumer", object, async move {
            let acked = on.journal().delete_consumer(&request.name)?;
            Ok(DeleteConsumerResponse {
                acked: Some(on.journal().cursor(acked).into()),
            })
        })
        .await
    }
}
