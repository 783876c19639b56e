//! Compares `ka_parse` and `ka_format`, through the C ABI, with a reference: the meaning or errno of a text, and the
//! text of a config. Each must read the other's output, and access only its own bytes.
//!
//! The first bytes are a config and sizes, the rest is the text.

#![no_main]
// Each `unsafe` here is a call of libka, with objects of the given size.
#![allow(clippy::undocumented_unsafe_blocks, reason = "one reason for all of them, above")]

use ka::text::{ka_format, ka_parse};
use ka_fuzz::input::Input;
use ka_fuzz::kernel::{call, words};
use ka_fuzz::memory::{Guarded, with_rooms};
use ka_fuzz::policy::{KEEP, Policy, Wrong};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| with_rooms(|[one, other, _]| {
    let mut input = Input(bytes);
    let size = u32::from(input.byte() % 16) * 4 % 40;
    let room = usize::from(input.byte() % 88);
    let policy = Policy::from_c([(); 6].map(|()| input.value()));
    let mut text = input.text(usize::MAX).to_vec();
    let meaning = Policy::parse(&text);
    text.push(0);

    // Parse the text into a config of any size.
    let before: Vec<u8> = words(size, &[0x5a5a_5a5a; 12])[..size.max(4) as usize].to_vec();
    let mut config = one.put(&before);
    let mut c_text = other.put(&text);
    let answer = call(|| unsafe { ka_parse(c_text.pointer(), config.pointer()) });
    let after = config.bytes();
    assert_eq!(c_text.bytes(), text);
    match meaning {
        _ if size < 8 => assert_eq!((answer, after), (Err(libc::EINVAL), before)),
        Err(Wrong::Form) => assert_eq!((answer, after), (Err(libc::EINVAL), before)),
        Err(Wrong::Range) => assert_eq!((answer, after), (Err(libc::ERANGE), before)),
        // A config without the field, as in 0.1.0, cannot hold the value.
        Ok(meaning) if meaning.rto_max != KEEP && size < 28 => {
            assert_eq!((answer, after), (Err(libc::EINVAL), before));
        }
        Ok(meaning) => {
            let mut expected = before.clone();
            let whole = words(size, &meaning.to_c());
            let known = whole.len().min(expected.len());
            expected[..known].copy_from_slice(&whole[..known]);
            assert_eq!((answer, after), (Ok(0), expected));
            check_format(&meaning, room, one, other);
        }
    }
    check_format(&policy, room, one, other);
}));

/// Formats a config into a buffer of `room` bytes, and parses the text again.
fn check_format(policy: &Policy, room: usize, one: &mut Guarded, other: &mut Guarded) {
    let whole = words(28, &policy.to_c());
    let before = vec![0x5a; room];
    let mut config = one.put(&whole);
    let mut text = other.put(&before);
    let answer = call(|| unsafe { ka_format(config.pointer(), text.pointer(), room) });
    assert_eq!(config.bytes(), whole);
    if !policy.is_sound() {
        assert_eq!((answer, text.bytes()), (Err(libc::EINVAL), before));
        return;
    }
    let canonical = policy.text();
    assert_eq!(answer, Ok(i32::try_from(canonical.len()).unwrap()));
    let mut expected = before;
    if room > 0 {
        let cut = canonical.len().min(room - 1);
        expected[..cut].copy_from_slice(&canonical.as_bytes()[..cut]);
        expected[cut] = 0;
    }
    assert_eq!(text.bytes(), expected);
    // According to ka.h, 80 bytes hold any text, and parsing a text returns the same config.
    assert!(canonical.len() < 80);
    assert_eq!(Policy::parse(canonical.as_bytes()), Ok(*policy));
    let mut canonical = canonical.into_bytes();
    canonical.push(0);
    let mut text = other.put(&canonical);
    let mut read = one.put(&words(28, &[0; 6]));
    assert_eq!(call(|| unsafe { ka_parse(text.pointer(), read.pointer()) }), Ok(0));
    assert_eq!(read.bytes(), whole);
}
