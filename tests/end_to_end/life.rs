//! A daemon's own life: sockets, configuration, health, what it says of itself.

use std::sync::Arc;

use evloopd::proto::*;
use tokio_stream::StreamExt;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServiceResponse};

use crate::common::{Daemon, command, directory, hang_up, log, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_live_socket_is_not_taken_over() {
    let first = Daemon::start("").await;
    let file = first.dir.path().join("log");
    std::fs::remove_file(file).unwrap();
    let mut second = command(first.dir.path(), "version = 1\n", &[])
        .spawn()
        .unwrap();
    let status = within("the second daemon's end", second.wait())
        .await
        .unwrap();
    assert!(!status.success());
    let said = first.log();
    assert!(said.contains("evloopd.sock"), "{said}");
    first.info().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_socket_that_clients_are_told_of_is_not_the_daemons_own() {
    let first = Daemon::start("").await;
    let dir = directory();
    let file = dir.path().join("evloopd.toml");
    let own = dir.path().join("evloopd.sock");
    let config = format!("version = 1\n[server]\nsocket = \"{}\"\n", own.display());
    std::fs::write(&file, config).unwrap();
    // As from a shell, or a child of a daemon, where `evloopctl` finds the first one.
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_evloopd"));
    command
        .arg("--config")
        .arg(&file)
        .env("EVLOOPD_SOCKET", &first.socket)
        .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
        .kill_on_drop(true);
    let second = Daemon::start_as(dir, command).await;
    assert_eq!(second.info().await.socket, own.display().to_string());
    assert_ne!(first.info().await.instance, second.info().await.instance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stale_socket_is_replaced() {
    let dir = directory();
    for name in ["evloopd.sock", "evloopd.sock.handover"] {
        let stale = std::os::unix::net::UnixListener::bind(dir.path().join(name)).unwrap();
        hang_up(&stale);
    }
    let daemon = Daemon::start_in(Arc::clone(&dir), "", &[]).await;
    daemon.info().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_that_is_no_socket_is_left_alone() {
    let dir = directory();
    let path = dir.path().join("evloopd.sock");
    std::fs::write(&path, "precious").unwrap();
    let mut daemon = command(dir.path(), "version = 1\n", &[]).spawn().unwrap();
    let status = within("its end", daemon.wait()).await.unwrap();
    assert!(!status.success());
    assert_eq!(std::fs::read_to_string(path).unwrap(), "precious");
}

async fn check_config(config: &str) -> (Option<i32>, String) {
    let dir = directory();
    let mut check = command(dir.path(), config, &[]);
    let status = within("the check", check.arg("--check-config").status())
        .await
        .unwrap();
    assert!(!dir.path().join("evloopd.sock").exists(), "it only checks");
    (status.code(), log(dir.path()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn check_config_names_file_line_and_key() {
    assert_eq!(check_config("version = 1\n").await.0, Some(0));
    for (config, words) in [
        ("version = 2\n", vec!["evloopd.toml", "version"]),
        ("", vec!["evloopd.toml", "version"]),
        (
            "version = 1\n[server]\nmodus = \"0600\"\n",
            vec!["evloopd.toml:3", "modus", "mode"],
        ),
        (
            "version = 1\n[limits]\nmailbox = 1\n",
            vec!["evloopd.toml:3", "mailbox", "16"],
        ),
        (
            "version = 1\n[limits]\nmemory = \"lots\"\n",
            vec!["evloopd.toml:3", "memory"],
        ),
        (
            "version = 1\n[policy.a]\nextends = \"b\"\n",
            vec!["policy.a", "b"],
        ),
        (
            "version = 1\ndefault_policy = \"x\"\n",
            vec!["default_policy", "x"],
        ),
        (
            "version = 1\n[signals]\nallow = [\"SIGTERM\"]\n",
            vec!["allow", "SIGTERM"],
        ),
        ("version = = 1\n", vec!["evloopd.toml:1"]),
    ] {
        let (code, said) = check_config(config).await;
        assert_eq!(code, Some(2), "{config:?}: {said}");
        for word in words {
            assert!(
                said.contains(word),
                "`{word}` is not in {said:?} for {config:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn policies_that_extend_each_other_are_refused() {
    let circle = "version = 1\n[policy.a]\nextends = \"b\"\n[policy.b]\nextends = \"a\"\n";
    let (code, said) = check_config(circle).await;
    assert_eq!(code, Some(2), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_is_served() {
    let daemon = Daemon::start("").await;
    let mut health = HealthClient::new(daemon.channel());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflection_is_served() {
    let daemon = Daemon::start("").await;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let answer = ServerReflectionClient::new(daemon.channel())
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap();
    let answer = within("an answer", answer.into_inner().next())
        .await
        .unwrap()
        .unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<String> = list
        .service
        .into_iter()
        .map(|s: ServiceResponse| s.name)
        .collect();
    for service in [
        "Policy",
        "Loop",
        "Watch",
        "Process",
        "Transport",
        "Event",
        "Admin",
    ] {
        let name = format!("evloopd.v1.{service}Service");
        assert!(names.contains(&name), "{names:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_tells_who_it_is() {
    let daemon = Daemon::start("").await;
    let info = daemon.info().await;
    assert_eq!(info.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(info.pid, daemon.pid().as_raw());
    assert_eq!(info.socket, daemon.socket.to_str().unwrap());
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(info.boot_id, boot_id.trim());
    assert!(info.administrator && info.started.is_some());
    let other = Daemon::start("").await;
    assert_ne!(other.info().await.instance, info.instance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_configuration_in_force_says_where_each_value_came_from() {
    let daemon = Daemon::start("[limits]\nloops = 7\n").await;
    let answer = daemon
        .admin()
        .get_config(GetConfigRequest {})
        .await
        .unwrap();
    let values = answer.into_inner().values;
    let value = |key: &str| values.iter().find(|value| value.key == key).unwrap();
    let loops = value("limits.loops");
    assert_eq!(loops.value, "7");
    assert!(loops.source.contains("evloopd.toml:3"), "{}", loops.source);
    assert_eq!(value("limits.children").source, "default");
    assert_eq!(value("server.socket").source, "command line");
}
