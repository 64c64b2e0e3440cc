//! What the fields of requests are called on the command line, for refusals of the daemon.

/// Fields that have another name than their option, or that no option but an argument sets. A field is given by the end of its
/// path.
const RENAMED: [(&str, &str); 79] = [
    ("argv", "the command"),
    ("argv_bytes", "the command"),
    ("ca_pem", "--cacert"),
    ("certificate_pem", "--cert"),
    ("check_every", "how often the file is looked at"),
    ("config", "--tls"),
    ("connect_timeout", "--timeout"),
    ("connection.slot", "the descriptor"),
    ("connection.unix", "the address"),
    ("connection.unix.path", "the address"),
    ("consumer_ttl", "--ttl"),
    ("cwd_bytes", "--cwd"),
    ("datagram.groups", "--join"),
    ("datagram.local", "the address"),
    ("datagram.local.inet.ip", "the address"),
    ("datagram.local.inet.port", "the port"),
    ("datagram.local.unix", "the address"),
    ("datagram.local.unix.path", "the address"),
    ("datagram.slot", "the descriptor"),
    ("env_bytes", "--env"),
    ("fd.slot", "the descriptor"),
    ("fifo_path", "the path"),
    ("file.path", "the path"),
    ("file.path_bytes", "the path"),
    ("file.start", "--end and --offset"),
    ("group.interface", "the interface of the group"),
    ("group.ip", "the group"),
    ("groups", "--group"),
    ("high_bytes", "--high-water"),
    ("hosts", "the host"),
    ("keep_alive.count", "--keepcnt"),
    ("keep_alive.idle", "--keepidle"),
    ("keep_alive.interval", "--keepintvl"),
    ("keep_generations", "--keep-files"),
    ("key_pem", "--key"),
    ("labels", "--label"),
    ("limits", "--limit"),
    ("listener.tcp.ipv6_only", "--dual-stack"),
    ("listener.unix", "the address"),
    ("listener.unix.path", "the address"),
    ("local_ip", "--source"),
    ("local_port", "--source-port"),
    ("low_bytes", "--low-water"),
    ("max_connections", "--max-conns"),
    ("path.kinds", "--only"),
    ("path.path", "the path"),
    ("path.path_bytes", "the path"),
    ("peer", "--to"),
    ("peer.inet.ip", "--to"),
    ("peer.inet.port", "--to"),
    ("peer.unix", "--to"),
    ("peer.unix.path", "--to"),
    ("pid.pid", "the pid"),
    ("scheduling.policy", "--scheduling"),
    ("scheduling.priority", "the priority of --scheduling"),
    ("server_name", "--servername"),
    ("signals", "the signals"),
    ("source_interface_index", "--interface"),
    ("source_ip", "--source"),
    ("stderr_file", "--stderr"),
    ("stderr_file.path", "--stderr"),
    ("stdin_file", "--stdin"),
    ("stdin_file.path", "--stdin"),
    ("stdout_file", "--stdout"),
    ("stdout_file.path", "--stdout"),
    ("tcp.host", "the host"),
    ("tcp.port", "the port"),
    ("tcp_options", "the options of TCP"),
    ("term", "TERM"),
    ("time_zone", "--zone"),
    ("timer.after", "the delay"),
    ("timer.at_realtime", "the time"),
    ("timer.cron", "the expression"),
    ("timer.every", "the interval"),
    ("timer.on_calendar", "the expression"),
    ("tls", "--tls"),
    ("variables", "your environment"),
    ("variables_bytes", "your environment"),
    ("water_marks", "--high-water and --low-water"),
];

/// Fields whose options have the same name.
const SAME: [&str; 51] = [
    "allow_truncation",
    "alpn",
    "at_end",
    "attempt_delay",
    "backlog",
    "broadcast",
    "cwd",
    "env",
    "finished_ttl",
    "group",
    "handshake_timeout",
    "ignore",
    "interleave",
    "ipv6_only",
    "keep_half_open",
    "kill_grace",
    "lease",
    "max_size",
    "multicast_interface",
    "multicast_loop",
    "multicast_ttl",
    "nice",
    "nodelay",
    "offset",
    "oom_score_adj",
    "parent_death_signal",
    "paused",
    "poll",
    "reap_wait",
    "receive_buffer",
    "recursive",
    "reuse_address",
    "reuse_port",
    "rotated_wait",
    "scheduling",
    "size_of",
    "slack",
    "splay",
    "start_paused",
    "start_ticks",
    "stderr",
    "stdin",
    "stdout",
    "stop_signal",
    "timeout",
    "ttl",
    "umask",
    "user",
    "user_data",
    "user_timeout",
    "window",
];

/// Returns the option that sets a field, such as `--cert`, or in words what sets it; `None` if that is not known.
pub(super) fn option(path: &str) -> Option<String> {
    let ends = |end: &str| {
        let before = path.strip_suffix(end);
        before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
    };
    // The longest end says most.
    let renamed = RENAMED.iter().filter(|(end, _)| ends(end));
    if let Some((_, option)) = renamed.max_by_key(|(end, _)| end.len()) {
        return Some((*option).to_owned());
    }
    let same = SAME.iter().find(|field| ends(field))?;
    Some(format!("--{}", same.replace('_', "-")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;
    use prost_reflect::{Kind, MessageDescriptor};

    use super::*;
    use crate::ctl::Args;

    /// Collects the long options of a command and of those below it.
    fn options(command: &clap::Command, found: &mut BTreeSet<String>) {
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        found.extend(longs.map(|long| format!("--{long}")));
        command
            .get_subcommands()
            .for_each(|below| options(below, found));
    }

    /// Collects the paths of the fields of a message and of the messages in it.
    fn paths(message: &MessageDescriptor, before: &str, found: &mut Vec<String>) {
        for field in message.fields() {
            let path = format!("{before}.{}", field.name());
            match field.kind() {
                Kind::Message(inner) if inner.package_name() == "evloopd.v1" => {
                    paths(&inner, &path, found);
                }
                _ => {}
            }
            found.push(path);
        }
    }

    #[test]
    fn a_field_is_named_as_an_option_that_exists_and_by_the_same_name_if_there_is_one() {
        let mut command = Args::command();
        command.build();
        let mut all = BTreeSet::new();
        options(&command, &mut all);
        let watch = command.find_subcommand("watch").unwrap();
        // A signal watch has no further options. The name of a watch is not that of a limit.
        let mut common = BTreeSet::new();
        options(watch.find_subcommand("signal").unwrap(), &mut common);
        let spec = crate::proto::descriptors().get_message_by_name("evloopd.v1.WatchSpec");
        for kind in spec.unwrap().fields() {
            let Kind::Message(message) = kind.kind() else {
                continue;
            };
            let verb = match kind.name() {
                "connection" => "connect".to_owned(),
                "listener" => "listen".to_owned(),
                "datagram" => "udp".to_owned(),
                name => name.replace('_', "-"),
            };
            let verb = watch.find_subcommand(&verb).expect("a verb of the kind");
            let mut of_verb = BTreeSet::new();
            options(verb, &mut of_verb);
            of_verb.retain(|option| !common.contains(option));
            let mut found = Vec::new();
            paths(&message, &format!("spec.{}", kind.name()), &mut found);
            for path in found {
                let named = option(&path);
                if let Some(named) = named.as_deref().filter(|named| named.starts_with('-')) {
                    let first = named.split(' ').next().unwrap();
                    assert!(all.contains(first), "{path}: {named}");
                }
                let last = path.rsplit('.').next().unwrap();
                let same = format!("--{}", last.replace('_', "-"));
                if of_verb.contains(&same) {
                    assert!(named.is_some(), "{path} could be named {same}");
                }
            }
        }
    }

    #[test]
    fn the_longest_end_of_a_path_names_its_option() {
        for (path, named) in [
            ("spec.connection.tls.key_pem", "--key"),
            ("spec.listener.tcp.ipv6_only", "--dual-stack"),
            ("spec.datagram.ipv6_only", "--ipv6-only"),
            ("spec.process.groups", "--group"),
            ("spec.datagram.groups", "--join"),
            ("peer.inet.ip", "--to"),
            ("tls.config", "--tls"),
        ] {
            assert_eq!(option(path).as_deref(), Some(named), "{path}");
        }
        assert_eq!(option("spec.process.at_end_of_day"), None);
        assert_eq!(option("other_peer"), None);
    }
}
