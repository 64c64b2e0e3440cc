//! What is typed into a child's terminal.

use evloopd::proto::{Stdio, Stream, exited::Status};
use tonic::Code;

use crate::common::{Scene, exec, in_terminal, refused, shell};
use crate::pty_output::{fifo, met};

on_each_backend!(
    a_long_line_is_refused_and_not_cut,
    raw_input_of_any_length_arrives,
    what_a_terminal_does_not_take_is_not_taken,
    the_end_of_file_is_typed,
    the_end_of_file_after_half_a_line_is_typed_twice,
    a_raw_terminal_has_no_end_of_file,
    a_signal_key_drops_no_output_that_can_be_read,
    output_that_the_kernel_drops_is_told,
    a_terminal_that_is_no_stdin_takes_nothing,
);

fn count(all: &str, byte: char) -> usize {
    all.chars().filter(|c| *c == byte).count()
}

/// The kernel keeps 4,095 bytes of a line and drops the rest, although write(2) takes it.
async fn a_long_line_is_refused_and_not_cut(scene: &mut Scene) {
    let id = scene.spawn(in_terminal(exec(&["cat"]))).await;
    let long = scene.write_at(id, &[b'a'; 6000], None).await;
    let long = refused(long, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(long.fields, ["data"]);
    let lines = [&[b'b'; 4095][..], b"\n", &[b'c'; 2000]].concat();
    assert_eq!(scene.write(id, &lines).await, 6096);
    let rest = scene.write_at(id, &[b'c'; 2096], None).await;
    refused(rest, Code::InvalidArgument, "INVALID_FIELD");
    let rest = [&[b'c'; 2095][..], b"\n"].concat();
    assert_eq!(scene.write(id, &rest).await, 8192);
    scene.write_eof(id).await;
    scene.closed(id).await;
    let all = scene.recorder.bytes(id, Stream::Stdout);
    let all = String::from_utf8_lossy(&all).into_owned();
    // Once as the echo, once by cat.
    for (byte, times) in [('a', 0), ('b', 2 * 4095), ('c', 2 * 4095)] {
        assert_eq!(count(&all, byte), times, "{byte}");
    }
}

/// Writes all of it, with a wait whenever the terminal takes no more.
async fn write_all(scene: &mut Scene, id: u64, data: &[u8]) {
    let mut seq = 0;
    let mut taken = usize::try_from(scene.process(id).await.stdin_bytes).unwrap();
    let end = taken + data.len();
    while taken < end {
        let rest = &data[data.len() - (end - taken)..];
        taken = usize::try_from(scene.write(id, rest).await).unwrap();
        if taken < end {
            seq = scene.recorder.after(seq, id, "write_resumed").await.seq;
        }
    }
}

async fn raw_input_of_any_length_arrives(scene: &mut Scene) {
    const BYTES: usize = 300_000;
    let line = format!("stty raw -echo; echo up; head -c {BYTES} | tr -d a | wc -c");
    let id = scene.spawn(in_terminal(shell(&line))).await;
    scene.output(id, "up").await;
    let data: Vec<u8> = (0..BYTES)
        .map(|n| if n % 3 == 0 { b'b' } else { b'a' })
        .collect();
    write_all(scene, id, &data).await;
    scene.closed(id).await;
    let all = scene.output(id, "up").await;
    assert_eq!(all.split_whitespace().collect::<Vec<_>>(), ["up", "100000"]);
}

async fn what_a_terminal_does_not_take_is_not_taken(scene: &mut Scene) {
    let fifo = fifo(scene, "deaf");
    let line = format!(
        "stty raw -echo; echo up; read x < {}; head -c 65536 | wc -c",
        fifo.display()
    );
    let id = scene.spawn(in_terminal(shell(&line))).await;
    scene.output(id, "up").await;
    let taken = scene.write(id, &[b'a'; 65_536]).await;
    assert!((4095..40_000).contains(&taken), "{taken}");
    scene.recorder.first(id, "write_paused").await;
    assert_eq!(scene.process(id).await.stdin_bytes, taken);
    drop(met(fifo).await);
    scene.recorder.first(id, "write_resumed").await;
    let rest = 65_536 - usize::try_from(taken).unwrap();
    write_all(scene, id, &vec![b'a'; rest]).await;
    scene.output(id, "65536").await;
    scene.closed(id).await;
}

async fn the_end_of_file_is_typed(scene: &mut Scene) {
    let id = scene.spawn(in_terminal(exec(&["cat"]))).await;
    scene.write(id, b"whole\n").await;
    scene.write_eof(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(0)));
    scene.closed(id).await;
    let all = scene.recorder.bytes(id, Stream::Stdout);
    let all = String::from_utf8_lossy(&all).into_owned();
    assert_eq!(all.matches("whole\r\n").count(), 2, "{all:?}");
}

async fn the_end_of_file_after_half_a_line_is_typed_twice(scene: &mut Scene) {
    let id = scene
        .spawn(in_terminal(shell("cat | od -An -c; cat; echo end")))
        .await;
    scene.write(id, b"half").await;
    scene.write_eof(id).await;
    scene.output(id, "h   a   l   f\r\n").await;
    // The next program reads a terminal like new.
    scene.write(id, b"more\n").await;
    scene.output(id, "more\r\nmore\r\n").await;
    scene.write_eof(id).await;
    scene.output(id, "end\r\n").await;
    scene.closed(id).await;
}

async fn a_raw_terminal_has_no_end_of_file(scene: &mut Scene) {
    let id = scene
        .spawn(in_terminal(shell(
            "stty raw -echo; echo up; head -c 1 | od -An -tx1",
        )))
        .await;
    scene.output(id, "up").await;
    assert!(!scene.terminal(id).await.line_mode);
    let none = scene.try_write_eof(id).await;
    refused(none, Code::FailedPrecondition, "WRONG_STATE");
    scene.write(id, b"q").await;
    scene.output(id, " 71").await;
    scene.closed(id).await;
}

/// The kernel keeps 4,095 of the bytes that nobody has read when Ctrl-C is typed. It holds at least
/// 8 KiB of them.
async fn a_signal_key_drops_no_output_that_can_be_read(scene: &mut Scene) {
    let (before, after) = (fifo(scene, "before"), fifo(scene, "after"));
    let line = format!(
        "trap 'echo caught; exit 7' INT; echo up; read x < {}; head -c 6000 /dev/zero | tr '\\0' x; \
         read x < {} & wait",
        before.display(),
        after.display()
    );
    let id = scene.spawn(in_terminal(shell(&line))).await;
    scene.output(id, "up").await;
    // Nothing reads the terminal while the loop is stopped.
    scene.stop().await;
    drop(met(before).await);
    let met = met(after).await;
    assert_eq!(scene.write(id, b"\x03").await, 1);
    scene.run().await;
    let all = scene.output(id, "caught").await;
    // Until then the shell waits, which a signal always ends, however shortly before it comes: a
    // signal before a read would end nothing.
    drop(met);
    assert_eq!(count(&all, 'x'), 6000);
    scene.closed(id).await;
    assert_eq!(scene.exited(id).await.status, Some(Status::Code(7)));
}

async fn output_that_the_kernel_drops_is_told(scene: &mut Scene) {
    let (before, after) = (fifo(scene, "before"), fifo(scene, "after"));
    let line = format!(
        "trap 'echo caught; exit 7' INT; echo up; read x < {}; head -c 6000 /dev/zero | tr '\\0' x; \
         read x < {} & wait",
        before.display(),
        after.display()
    );
    let id = scene.spawn(in_terminal(shell(&line))).await;
    scene.output(id, "up").await;
    let flushes = scene.terminal(id).await.flushes;
    scene.pause_reading(id, true).await;
    drop(met(before).await);
    let met = met(after).await;
    // The client does not want to get the output now, so the daemon does not read it.
    scene.write(id, b"\x03").await;
    scene.pause_reading(id, false).await;
    let all = scene.output(id, "caught").await;
    drop(met);
    assert!(count(&all, 'x') < 6000, "the kernel drops nothing here");
    scene.closed(id).await;
    let end = scene.stream_end(id).await;
    assert!(end.flushes > flushes, "{end:?}");
}

async fn a_terminal_that_is_no_stdin_takes_nothing(scene: &mut Scene) {
    let mut spec = in_terminal(exec(&["sleep", "3600"]));
    spec.set_stdin(Stdio::Null);
    let id = scene.spawn(spec).await;
    let none = scene.write_at(id, b"x", None).await;
    refused(none, Code::FailedPrecondition, "WRONG_STATE");
    scene.remove(id).await;
}
