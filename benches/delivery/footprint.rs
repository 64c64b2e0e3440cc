//! What a daemon takes that does nothing, and what a watch adds.

use evloopd::proto::admin_service_client::AdminServiceClient;
use evloopd::proto::{GetServerInfoRequest, TimerSpec, timer_spec, watch_spec};
use tokio::runtime::Runtime;

use crate::Outcome;
use crate::daemon::{Daemon, add_watches};
use crate::report::Report;

const STARTS: usize = 5;
const WATCHES: u32 = 10_000;

pub(crate) fn run(runtime: &Runtime, report: &mut Report) -> Outcome<()> {
    let mut idle = Vec::new();
    let mut per_watch = Vec::new();
    let mut start = Vec::new();
    for _ in 0..STARTS {
        let daemon = Daemon::start()?;
        start.push(daemon.start.as_secs_f64() * 1000.0);
        let (before, after) = runtime.block_on(measure(&daemon))?;
        idle.push(as_f64(before)? / f64::from(1 << 20));
        per_watch.push(as_f64(after.saturating_sub(before))? / f64::from(WATCHES));
    }
    report.figure("idle_rss_mib", idle);
    report.figure("rss_per_watch_bytes", per_watch);
    report.figure("start_ms", start);
    Ok(())
}

/// Resident bytes after the first call, and with many timers.
async fn measure(daemon: &Daemon) -> Outcome<(u64, u64)> {
    let channel = daemon.connect().await?;
    let mut admin = AdminServiceClient::new(channel.clone());
    admin.get_server_info(GetServerInfoRequest {}).await?;
    let idle = daemon.resident()?;
    let hour = prost_types::Duration {
        seconds: 3600,
        nanos: 0,
    };
    let timer = watch_spec::Spec::Timer(TimerSpec {
        schedule: Some(timer_spec::Schedule::After(hour)),
    });
    add_watches(channel, (0..WATCHES).map(|_| timer.clone())).await?;
    Ok((idle, daemon.resident()?))
}

fn as_f64(bytes: u64) -> Outcome<f64> {
    Ok(f64::from(u32::try_from(bytes)?))
}
