//! The LoopService.

use tonic::{Request, Response, Status};

use super::server::loop_service_server::LoopService;
use super::{Api, Requester, convert, mutate, requester};
use crate::event_loop::{Handle, LoopEnd};
use crate::proto::*;

#[tonic::async_trait]
impl LoopService for Api {
    async fn list_loops(
        &self,
        request: Request<ListLoopsRequest>,
    ) -> Result<Response<ListLoopsResponse>, Status> {
        let requester = requester(&request)?;
        let request = request.into_inner();
        let (size, after) = convert::page(request.page_size, &request.page_token)?;
        let handles = self
            .registry
            .list(&requester.caller, after, request.include_closed);
        let more = handles.len() > size;
        let loops: Vec<Loop> = handles.iter().take(size).map(Handle::view).collect();
        let next = loops.last().filter(|_| more);
        Ok(Response::new(ListLoopsResponse {
            next_page_token: next
                .map(|last| last.loop_id.to_string())
                .unwrap_or_default(),
            loops,
        }))
    }

    async fn get_loop(
        &self,
        request: Request<GetLoopRequest>,
    ) -> Result<Response<GetLoopResponse>, Status> {
        let requester = requester(&request)?;
        let handle = self.on(&requester, request.into_inner().r#loop, false)?;
        Ok(Response::new(GetLoopResponse {
            r#loop: Some(handle.view()),
        }))
    }

    async fn run_loop(
        &self,
        request: Request<RunLoopRequest>,
    ) -> Result<Response<RunLoopResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: RunLoopRequest| async move {
            let handle = api.on(&requester, request.r#loop, false)?;
            let object = handle.full_name().to_owned();
            let cursor = mutate(
                &requester,
                "RunLoop",
                object,
                async move { handle.run().await },
            )
            .await?;
            Ok(RunLoopResponse {
                cursor: Some(cursor.into()),
            })
        };
        let answer = self
            .once(requester, "RunLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn stop_loop(
        &self,
        request: Request<StopLoopRequest>,
    ) -> Result<Response<StopLoopResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: StopLoopRequest| async move {
            let handle = api.on(&requester, request.r#loop, false)?;
            let object = handle.full_name().to_owned();
            let cursor = mutate(&requester, "StopLoop", object, async move {
                handle.stop().await
            })
            .await?;
            Ok(StopLoopResponse {
                cursor: Some(cursor.into()),
            })
        };
        let answer = self
            .once(requester, "StopLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn close_loop(
        &self,
        request: Request<CloseLoopRequest>,
    ) -> Result<Response<CloseLoopResponse>, Status> {
        let requester = requester(&request)?;
        let work = |api: Self, requester: Requester, request: CloseLoopRequest| async move {
            let handle = api.on(&requester, request.r#loop, false)?;
            let readable_for = crate::clock::duration(handle.policy().closed_ttl);
            let (api, object) = (api.clone(), handle.full_name().to_owned());
            let stop = request.stop;
            let cursor = mutate(&requester, "CloseLoop", object, async move {
                let end = LoopEnd {
                    force: stop,
                    ..LoopEnd::default()
                };
                api.registry.close(&handle, end).await
            })
            .await?;
            Ok(CloseLoopResponse {
                cursor: Some(cursor.into()),
                readable_for: Some(readable_for),
            })
        };
        let answer = self
            .once(requester, "CloseLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveResponse>, Status> {
        let requester = requester(&request)?;
        let request = request.into_inner();
        let on = self.on(&requester, request.r#loop, false)?;
        let length = convert::lease_length(request.lease)?;
        let lease = match request.watch {
            None => on.renew_lease(length)?,
            Some(watch) => {
                on.keep_alive(convert::watch_name(Some(watch))?, length)
                    .await?
            }
        };
        Ok(Response::new(KeepAliveResponse {
            lease: Some(crate::clock::duration(lease)),
        }))
    }
}
