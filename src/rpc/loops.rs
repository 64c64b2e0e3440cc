//! The LoopService.

use tonic::{Request, Response, Status};

use super::server::loop_service_server::LoopService;
use super::{Api, Asker, asker, convert, mutate};
use crate::event_loop::Handle;
use crate::proto::*;

#[tonic::async_trait]
impl LoopService for Api {
    async fn list_loops(
        &self,
        request: Request<ListLoopsRequest>,
    ) -> Result<Response<ListLoopsResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let (size, after) = convert::page(request.page_size, &request.page_token)?;
        let handles = self
            .registry
            .list(&asker.caller, after, request.include_closed);
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
        let asker = asker(&request)?;
        let handle = self.on(&asker, request.into_inner().r#loop, false)?;
        Ok(Response::new(GetLoopResponse {
            r#loop: Some(handle.view()),
        }))
    }

    async fn run_loop(
        &self,
        request: Request<RunLoopRequest>,
    ) -> Result<Response<RunLoopResponse>, Status> {
        let asker = asker(&request)?;
        let work = |api: Self, asker: Asker, request: RunLoopRequest| async move {
            let handle = api.on(&asker, request.r#loop, false)?;
            let object = handle.full_name().to_owned();
            let cursor =
                mutate(&asker, "RunLoop", object, async move { handle.run().await }).await?;
            Ok(RunLoopResponse {
                cursor: Some(cursor.into()),
            })
        };
        let answer = self
            .once(asker, "RunLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn stop_loop(
        &self,
        request: Request<StopLoopRequest>,
    ) -> Result<Response<StopLoopResponse>, Status> {
        let asker = asker(&request)?;
        let work = |api: Self, asker: Asker, request: StopLoopRequest| async move {
            let handle = api.on(&asker, request.r#loop, false)?;
            let object = handle.full_name().to_owned();
            let cursor = mutate(
                &asker,
                "StopLoop",
                object,
                async move { handle.stop().await },
            )
            .await?;
            Ok(StopLoopResponse {
                cursor: Some(cursor.into()),
            })
        };
        let answer = self
            .once(asker, "StopLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }

    async fn close_loop(
        &self,
        request: Request<CloseLoopRequest>,
    ) -> Result<Response<CloseLoopResponse>, Status> {
        let asker = asker(&request)?;
        let work = |api: Self, asker: Asker, request: CloseLoopRequest| async move {
            let handle = api.on(&asker, request.r#loop, false)?;
            let readable_for = crate::clock::duration(handle.policy().closed_ttl);
            let (api, object) = (api.clone(), handle.full_name().to_owned());
            let stop = request.stop;
            let cursor = mutate(&asker, "CloseLoop", object, async move {
                api.registry.close(&handle, stop).await
            })
            .await?;
            Ok(CloseLoopResponse {
                cursor: Some(cursor.into()),
                readable_for: Some(readable_for),
            })
        };
        let answer = self
            .once(asker, "CloseLoop", request.into_inner(), work)
            .await;
        Ok(Response::new(answer?))
    }
}
