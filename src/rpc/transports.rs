//! TransportService.

use tonic::{Request, Response, Status};

use super::server::transport_service_server::TransportService;
use super::{Api, asker, convert, mutate, object};
use crate::error::Error;
use crate::proto::*;

/// Most bytes of one Write.
const WRITE_MAX: usize = 1 << 20;

#[tonic::async_trait]
impl TransportService for Api {
    async fn write(
        &self,
        request: Request<WriteRequest>,
    ) -> Result<Response<WriteResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, false)?;
        let name = convert::watch_name(request.watch)?;
        if request.data.len() > WRITE_MAX {
            return Err(Error::invalid("data", "at most 1 MiB").into());
        }
        // Taken as a whole or not at all by one command, so it needs no task of its own.
        let taken = on.write(name, request.data, request.offset).await?;
        Ok(Response::new(WriteResponse {
            taken: taken.taken,
            buffered_bytes: taken.buffered,
        }))
    }

    async fn write_eof(
        &self,
        request: Request<WriteEofRequest>,
    ) -> Result<Response<WriteEofResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, false)?;
        on.write_eof(convert::watch_name(request.watch)?).await?;
        Ok(Response::new(WriteEofResponse {}))
    }

    async fn pause_reading(
        &self,
        request: Request<PauseReadingRequest>,
    ) -> Result<Response<PauseReadingResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, false)?;
        on.pause_reading(convert::watch_name(request.watch)?, true)
            .await?;
        Ok(Response::new(PauseReadingResponse {}))
    }

    async fn resume_reading(
        &self,
        request: Request<ResumeReadingRequest>,
    ) -> Result<Response<ResumeReadingResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, false)?;
        on.pause_reading(convert::watch_name(request.watch)?, false)
            .await?;
        Ok(Response::new(ResumeReadingResponse {}))
    }

    async fn abort(
        &self,
        request: Request<AbortRequest>,
    ) -> Result<Response<AbortResponse>, Status> {
        let asker = asker(&request)?;
        let request = request.into_inner();
        let on = self.on(&asker, request.r#loop, false)?;
        let name = convert::watch_name(request.watch)?;
        let object = object(&on, format!("{name:?}"));
        let closed = mutate(&asker, "Abort", object, async move { on.abort(name).await }).await?;
        Ok(Response::new(AbortResponse {
            closed: Some(closed.into()),
        }))
    }
}
