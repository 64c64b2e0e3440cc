//! Short forms of requests and specifications.

use std::time::Duration;

use bytes::Bytes;
use evloopd::proto::watch_spec::Spec;
use evloopd::proto::*;

/// Converts to a protobuf duration.
pub(crate) fn lasting(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap()
}

pub(crate) fn seconds(seconds: u64) -> prost_types::Duration {
    lasting(Duration::from_secs(seconds))
}

pub(crate) fn millis(millis: u64) -> prost_types::Duration {
    lasting(Duration::from_millis(millis))
}

pub(crate) fn loop_named(name: &str) -> LoopRef {
    LoopRef {
        r#ref: Some(loop_ref::Ref::Name(name.into())),
    }
}

pub(crate) fn by_id(watch_id: u64) -> Option<WatchRef> {
    Some(WatchRef {
        r#ref: Some(watch_ref::Ref::WatchId(watch_id)),
    })
}

pub(crate) fn by_name(name: &str) -> Option<WatchRef> {
    Some(WatchRef {
        r#ref: Some(watch_ref::Ref::Name(name.into())),
    })
}

pub(crate) fn timer(schedule: timer_spec::Schedule) -> Spec {
    Spec::Timer(TimerSpec {
        schedule: Some(schedule),
        ..TimerSpec::default()
    })
}

pub(crate) fn after(delay: Duration) -> Spec {
    timer(timer_spec::Schedule::After(lasting(delay)))
}

/// A timer that is due long after the test has ended.
pub(crate) fn never() -> Spec {
    after(Duration::from_secs(86_400))
}

pub(crate) fn reader(slot: Bytes) -> Spec {
    Spec::Fd(FdSpec {
        slot,
        readable: true,
        writable: false,
    })
}

pub(crate) fn writer(slot: Bytes) -> Spec {
    Spec::Fd(FdSpec {
        slot,
        readable: false,
        writable: true,
    })
}

/// A process given by a shell command line.
pub(crate) fn shell(line: &str) -> ProcessSpec {
    ProcessSpec {
        command: Some(process_spec::Command::Shell(line.into())),
        ..ProcessSpec::default()
    }
}

/// A process given by a program and its arguments.
pub(crate) fn exec(argv: &[&str]) -> ProcessSpec {
    ProcessSpec {
        command: Some(process_spec::Command::Exec(ExecCommand {
            argv: argv.iter().map(|&word| word.into()).collect(),
            ..ExecCommand::default()
        })),
        ..ProcessSpec::default()
    }
}

/// The process with a terminal.
pub(crate) fn in_terminal(spec: ProcessSpec) -> ProcessSpec {
    ProcessSpec {
        stdin: Stdio::Pty.into(),
        stdout: Stdio::Pty.into(),
        stderr: Stdio::Pty.into(),
        ..spec
    }
}

pub(crate) fn tcp(host: &str, port: u32) -> ConnectionSpec {
    connection(connection_spec::Target::Tcp(TcpTarget {
        host: host.into(),
        port,
        ..TcpTarget::default()
    }))
}

pub(crate) fn connection(target: connection_spec::Target) -> ConnectionSpec {
    ConnectionSpec {
        target: Some(target),
        ..ConnectionSpec::default()
    }
}

/// A connection made of a connected socket that was handed over.
pub(crate) fn adopted(slot: Bytes) -> ConnectionSpec {
    connection(connection_spec::Target::Slot(slot))
}

/// A listener on 127.0.0.1, on a port that the kernel chooses.
pub(crate) fn tcp_listener() -> ListenerSpec {
    listener(listener_spec::Target::Tcp(TcpListen {
        hosts: vec!["127.0.0.1".into()],
        ..TcpListen::default()
    }))
}

pub(crate) fn listener(target: listener_spec::Target) -> ListenerSpec {
    ListenerSpec {
        target: Some(target),
        ..ListenerSpec::default()
    }
}

pub(crate) fn unix_path(path: &std::path::Path) -> UnixAddress {
    UnixAddress {
        name: Some(unix_address::Name::Path(path.to_str().unwrap().into())),
    }
}

pub(crate) fn read_pipe(slot: Bytes) -> Spec {
    Spec::ReadPipe(ReadPipeSpec {
        source: Some(read_pipe_spec::Source::Slot(slot)),
        start_paused: false,
    })
}

pub(crate) fn write_pipe(slot: Bytes) -> Spec {
    Spec::WritePipe(WritePipeSpec {
        target: Some(write_pipe_spec::Target::Slot(slot)),
        ..WritePipeSpec::default()
    })
}

pub(crate) fn inet(ip: &str, port: u16) -> SocketAddress {
    SocketAddress {
        address: Some(socket_address::Address::Inet(InetAddress {
            ip: ip.into(),
            port: port.into(),
        })),
    }
}

pub(crate) fn unix_socket(path: &std::path::Path) -> SocketAddress {
    SocketAddress {
        address: Some(socket_address::Address::Unix(unix_path(path))),
    }
}

/// A datagram socket bound to that address.
pub(crate) fn datagrams_at(local: SocketAddress) -> DatagramSpec {
    DatagramSpec {
        local: Some(local),
        ..DatagramSpec::default()
    }
}

/// A multicast group on the loopback interface.
pub(crate) fn on_loopback(ip: &str) -> MulticastGroup {
    MulticastGroup {
        ip: ip.into(),
        interface: "lo".into(),
    }
}

pub(crate) fn signals(names: &[&str]) -> Spec {
    Spec::Signal(SignalSpec {
        signals: names.iter().map(|&name| name.into()).collect(),
    })
}

pub(crate) fn post(topic: &str, payload: &[u8]) -> Post {
    Post {
        topic: topic.into(),
        payload: Bytes::copy_from_slice(payload),
        ..Post::default()
    }
}
