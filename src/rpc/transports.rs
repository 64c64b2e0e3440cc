//! The TransportService.

use tonic::{Request, Response, Status};

use super::server::transport_service_server::TransportService;
use super::spec::{group, tls, water_marks};
use super::{Api, Requester, convert, mutate, object, requester};
use crate::error::Error;
use crate::event::PAYLOAD_MAX;
use crate::proto::*;
use crate::watch::{Membership, Parcel};

/// Most bytes of one Write.
pub(super) const WRITE_MAX: usize = 1 << 20;

#[tonic::async_trait]
impl TransportService for Api {
    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: WriteRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            if request.data.len() > WRITE_MAX {
                return Err(Error::invalid("data", "must be at most 1 MiB"));
            }
            // The loop takes all of the data or none of it in one command, so the write needs no
            // detached task.
            let taken = on.write(name, request.data, request.offset).await?;
            Ok(WriteResponse {
                taken: taken.taken,
                buffered_bytes: taken.buffered,
            })
        };
        let answer = self
            .once(requester, "Write", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn write_eof(
        &self,
        request: Request<WriteEofRequest>,
    ) -> Result<Response<WriteEofResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: WriteEofRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            on.write_eof(convert::watch_name(request.watch)?).await?;
            Ok(WriteEofResponse {})
        };
        let answer = self
            .once(requester, "WriteEof", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn send_to(
        &self,
        request: Request<SendToRequest>,
    ) -> Result<Response<SendToResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: SendToRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let parcel = parcel(
                request.data,
                request.peer.as_ref(),
                &request.source_ip,
                request.source_interface_index,
            )?;
            // As for Write: one command sends it.
            Ok(SendToResponse {
                buffered_bytes: on.send_to(name, parcel).await?,
            })
        };
        let answer = self
            .once(requester, "SendTo", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn start_tls(
        &self,
        request: Request<StartTlsRequest>,
    ) -> Result<Response<StartTlsResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, mut request: StartTlsRequest| async move {
            let on = api.on(&requester, request.r#loop.take(), false)?;
            let order = tls::start(&api.registry, &mut request)?;
            let name = convert::watch_name(request.watch)?;
            // As for Write: one command begins it.
            on.start_tls(name, order).await?;
            Ok(StartTlsResponse {})
        };
        let answer = self
            .once(requester, "StartTls", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn set_water_marks(
        &self,
        request: Request<SetWaterMarksRequest>,
    ) -> Result<Response<SetWaterMarksResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: SetWaterMarksRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let limits = api.registry.services().transport;
            let marks = water_marks(limits, "water_marks", request.water_marks.as_ref())?;
            on.set_water_marks(name, marks).await?;
            Ok(SetWaterMarksResponse {
                water_marks: Some(marks.into()),
            })
        };
        let answer = self
            .once(requester, "SetWaterMarks", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn join_group(
        &self,
        request: Request<JoinGroupRequest>,
    ) -> Result<Response<JoinGroupResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: JoinGroupRequest| async move {
            let JoinGroupRequest {
                r#loop,
                watch,
                group,
                ..
            } = request;
            let change = (Membership::Join, "JoinGroup");
            change_group(api, requester, (r#loop, watch), change, group).await?;
            Ok(JoinGroupResponse {})
        };
        let answer = self
            .once(requester, "JoinGroup", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn leave_group(
        &self,
        request: Request<LeaveGroupRequest>,
    ) -> Result<Response<LeaveGroupResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: LeaveGroupRequest| async move {
            let LeaveGroupRequest {
                r#loop,
                watch,
                group,
                ..
            } = request;
            let change = (Membership::Leave, "LeaveGroup");
            change_group(api, requester, (r#loop, watch), change, group).await?;
            Ok(LeaveGroupResponse {})
        };
        let answer = self
            .once(requester, "LeaveGroup", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn pause_reading(
        &self,
        request: Request<PauseReadingRequest>,
    ) -> Result<Response<PauseReadingResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: PauseReadingRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            on.pause_reading(convert::watch_name(request.watch)?, true)
                .await?;
            Ok(PauseReadingResponse {})
        };
        let answer = self
            .once(requester, "PauseReading", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn resume_reading(
        &self,
        request: Request<ResumeReadingRequest>,
    ) -> Result<Response<ResumeReadingResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: ResumeReadingRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            on.pause_reading(convert::watch_name(request.watch)?, false)
                .await?;
            Ok(ResumeReadingResponse {})
        };
        let answer = self
            .once(requester, "ResumeReading", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn abort(
        &self,
        request: Request<AbortRequest>,
    ) -> Result<Response<AbortResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: AbortRequest| async move {
            let on = api.on(&requester, request.r#loop, false)?;
            let name = convert::watch_name(request.watch)?;
            let object = object(&on, name.to_string());
            let closed = mutate(
                &requester,
                "Abort",
                object,
                async move { on.abort(name).await },
            )
            .await?;
            Ok(AbortResponse {
                closed: Some(closed.into()),
            })
        };
        let answer = self
            .once(requester, "Abort", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }
}

/// Checks a datagram to send.
pub(super) fn parcel(
    data: bytes::Bytes,
    peer: Option<&SocketAddress>,
    source_ip: &str,
    source_interface: u32,
) -> Result<Parcel, Error> {
    if data.len() > PAYLOAD_MAX {
        return Err(Error::invalid("data", "must be at most 256 KiB"));
    }
    Parcel::check(data, peer, source_ip, source_interface)
}

async fn change_group(
    api: Api,
    requester: Requester,
    (on, watch): (Option<LoopRef>, Option<WatchRef>),
    (change, action): (Membership, &'static str),
    asked: Option<MulticastGroup>,
) -> Result<(), Error> {
    let on = api.on(&requester, on, false)?;
    let name = convert::watch_name(watch)?;
    let asked = asked.ok_or_else(|| Error::invalid("group", "must be set"))?;
    let group = group("group", &asked)?;
    let object = object(&on, name.to_string());
    let work = async move { on.change_group(name, change, group).await };
    mutate(&requester, action, object, work).await
}
