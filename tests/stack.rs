//! Compares the stack usage that ka.h states with the stack usage that a C program measures.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use ka_test::child::stdout;
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::libka::EXPORTS;
use ka_test::path::root;

/// Returns the bytes that ka.h states for all functions, and for the two that compute an HMAC.
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
    // Bind functions of the C library at the start of the program. Lazy binding would use the stack of a call.
    let program = compile(cc().args(["-O2", "-Wl,-z,now"]), &source, Linkage::Shared);
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
    // The reaper calls malloc(3), whose stack usage depends on the C library.
    let bounded = used.iter().filter(|(name, _)| !name.starts_with("ka_reaper_"));
    let is_beat = |name: &str| ["ka_beat_sign", "ka_beat_verify"].contains(&name);
    let (beats, rest): (Vec<_>, Vec<_>) = bounded.partition(|(name, _)| is_beat(name));
    for (functions, stated) in [(rest, others), (beats, beat)] {
        let (name, most) = functions.into_iter().max_by_key(|(_, bytes)| **bytes).unwrap();
        assert!(*most <= stated, "{name} uses {most} bytes, and ka.h states {stated}:\n{printed}");
        // The stated number must not be far too high.
        assert!(
            *most * 2 > stated,
            "no function uses more than {most} bytes, and ka.h states {stated}:\n{printed}"
        );
    }
}
