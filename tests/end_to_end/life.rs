//! The daemon as a service: its sockets, configuration, health, and what it reports of itself.

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

use crate::common::{Daemon, command, directory, hang_up, within};

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
async fn a_daemon_ignores_evloopd_socket_in_its_environment() {
    let first = Daemon::start("").await;
    let dir = directory();
    let file = dir.path().join("evloopd.toml");
    let own = dir.path().join("evloopd.sock");
    let config = format!("version = 1\n[server]\nsocket = \"{}\"\n", own.display());
    std::fs::write(&file, config).unwrap();
    // The environment is that of a child of a daemon: `evloopctl` would find the first daemon
    // there.
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_evloopd"));
    command
        .arg("--no-keeper")
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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_is_served() {
    let daemon = Daemon::start("").await;
    let mut health = HealthClient::new(daemon.channel());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn reflection_is_served_to_older_tools_too() {
    use tonic_reflection::pb::v1alpha::ServerReflectionRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1alpha::server_reflection_response::MessageResponse;

    let daemon = Daemon::start("").await;
    let ask = |message| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(message),
    };
    let symbol = "evloopd.v1.ProcessService";
    let asked = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(symbol.to_owned())),
    ];
    let answers = ServerReflectionClient::new(daemon.channel())
        .server_reflection_info(tokio_stream::iter(asked))
        .await
        .unwrap();
    let mut answers = answers.into_inner();
    let mut next = async || {
        let answer = within("an answer", answers.next()).await.unwrap();
        answer.unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = next().await else {
        panic!("no list");
    };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    assert!(names.iter().any(|name| name == symbol), "{names:?}");
    let MessageResponse::FileDescriptorResponse(file) = next().await else {
        panic!("no file");
    };
    let bytes = file.file_descriptor_proto.first().unwrap().as_slice();
    let file: prost_types::FileDescriptorProto = prost::Message::decode(bytes).unwrap();
    assert_eq!(file.package(), "evloopd.v1");
    assert!(file.service.iter().any(|s| s.name() == "ProcessService"));
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
async fn the_daemon_identifies_itself() {
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
async fn the_configuration_in_force_names_the_source_of_each_value() {
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
