//! Tests that C and Rust agree on the structs and constants of ka.h.

use std::fmt::Write as _;
use std::io::Write as _;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use crate::beat::{KA_BEAT_NONCE_SIZE, KA_BEAT_SIZE, ka_beat};
use crate::config::{
    KA_AUTO, KA_CNT_MAX, KA_IDLE_MAX, KA_INTVL_MAX, KA_KEEP, KA_NONE, KA_OFF, KA_ON, KA_RTO_MAX_MAX,
    KA_RTO_MAX_MIN, ka_config,
};
use crate::socket::{KA_MISSED_CNT, KA_MISSED_IDLE, KA_MISSED_INTVL, KA_MISSED_TCP};
use crate::status::ka_status;

macro_rules! layout {
    ($($name:ident of $word:ident { $($field:ident),* })*) => {{
        let mut asserts = String::new();
        $(
            let size = size_of::<$name>();
            writeln!(asserts, "_Static_assert(sizeof(struct {}) == {size}, \"size\");", stringify!($name)).unwrap();
            let mut sum = 0;
            $(
                let (field, offset) = (stringify!($field), offset_of!($name, $field));
                writeln!(asserts, "_Static_assert(offsetof(struct {}, {field}) == {offset}, \"{field}\");", stringify!($name)).unwrap();
                sum += size_of::<$word>();
            )*
            assert_eq!(sum, size, "a field of {} is not checked", stringify!($name));
        )*
        asserts
    }};
}

#[test]
fn c_and_rust_agree_on_structs_and_constants() {
    let mut source = String::from("#include <ka.h>\n");
    source += &layout! {
        ka_config of u32 { size, keepalive, idle, intvl, cnt, user_timeout, rto_max }
        ka_status of u32 { size, state, probes, retransmits, unacked, last_ack_ms, last_recv_ms, last_send_ms, rtt_us }
        ka_beat of u64 { client, sequence }
    };
    for (name, value) in [
        ("KA_KEEP", KA_KEEP),
        ("KA_AUTO", KA_AUTO),
        ("KA_NONE", KA_NONE),
        ("KA_ON", KA_ON),
        ("KA_OFF", KA_OFF),
        ("KA_MISSED_IDLE", KA_MISSED_IDLE),
        ("KA_MISSED_INTVL", KA_MISSED_INTVL),
        ("KA_MISSED_CNT", KA_MISSED_CNT),
        ("KA_MISSED_TCP", KA_MISSED_TCP),
        ("KA_IDLE_MAX", KA_IDLE_MAX),
        ("KA_INTVL_MAX", KA_INTVL_MAX),
        ("KA_CNT_MAX", KA_CNT_MAX),
        ("KA_RTO_MAX_MIN", KA_RTO_MAX_MIN),
        ("KA_RTO_MAX_MAX", KA_RTO_MAX_MAX),
        ("KA_BEAT_NONCE_SIZE", KA_BEAT_NONCE_SIZE.try_into().unwrap()),
        ("KA_BEAT_SIZE", KA_BEAT_SIZE.try_into().unwrap()),
        // The sign is part of the number.
        ("-KA_KEEP", -KA_KEEP),
    ] {
        writeln!(source, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    assert!(compiles(&source), "{source}");
    // A wrong offset does not compile, so the assertions above are evaluated.
    assert!(!compiles(&source.replace("keepalive) == 4", "keepalive) == 8")));
}

fn compiles(source: &str) -> bool {
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/include");
    let mut compiler = Command::new("cc")
        .args(["-std=c11", "-fsyntax-only", "-I", include, "-xc", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    compiler.wait_with_output().unwrap().status.success()
}
