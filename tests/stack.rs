//! How much stack libka uses: what ka.h states, beside what a program in C measures.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use ka_test::child::stdout;
use ka_test::compiler::{Link, cc, compile};
use ka_test::libka::EXPORTS;
use ka_test::path::root;

/// The bytes that ka.h states: for all functions, and for the two that compute an HMAC.
fn stated() -> (u32, u32) {
    let header = fs::read_to_string(root().join("include/ka.h")).unwrap();
    let text = header.split_whitespace().filter(|word| *word != "*").collect::<Vec<_>>().join(" ");
    let (_, rest) = text.split_once("They use at most ").expect("ka.h states the stack");
    let (bytes, rest) =
        rest.split_once(" bytes of stack on x86-64; ka_beat_sign and ka_beat_verify use ").unwrap();
    let (kib, _) = rest.split_once(" KiB.").unwrap();
    let (whole, tenths) = kib.split_once('.').unwrap();
    let tenths = 10 * whole.parse::<u32>().unwrap() + tenths.parse::<u32>().unwrap();
    (bytes.parse().unwrap(), tenths * 1024 / 10)
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "ka.h states the stack of x86-64")]
fn functions_use_no_more_stack_than_the_header_states() {
    let source = root().join("tests/c/stack.c");
    // Functions of the C library are bound when the program starts, not on the stack of a call.
    let program = compile(cc().args(["-O2", "-Wl,-z,now"]), &source, Link::Shared);
    let printed = stdout(&mut Command::new(program));
    let mut used = BTreeMap::<&str, u32>::new();
    for line in printed.lines() {
        let (name, bytes) = line.split_once(' ').unwrap();
        let most = used.entry(name).or_default();
        *most = bytes.parse::<u32>().unwrap().max(*most);
    }
    let measured: Vec<_> = used.keys().copied().collect();
    let mut exports = EXPORTS.to_vec();
    exports.sort_unstable();
    assert_eq!(measured, exports, "{printed}");

    let (others, beat) = stated();
    // A reaper is in memory of malloc, whose stack is the C library's.
    let bounded = used.iter().filter(|(name, _)| !name.starts_with("ka_reaper_"));
    let is_beat = |name: &str| ["ka_beat_sign", "ka_beat_verify"].contains(&name);
    let (beats, rest): (Vec<_>, Vec<_>) = bounded.partition(|(name, _)| is_beat(name));
    for (functions, stated) in [(rest, others), (beats, beat)] {
        let (name, most) = functions.into_iter().max_by_key(|(_, bytes)| **bytes).unwrap();
        assert!(*most <= stated, "{name} uses {most} bytes, and ka.h states {stated}:\n{printed}");
        // A number that is far too high is wrong too.
        assert!(
            *most * 2 > stated,
            "no function uses more than {most} bytes, and ka.h states {stated}:\n{printed}"
        );
    }
}
