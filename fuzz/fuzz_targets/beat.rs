//! Verifies frames that are almost right. The target takes a key, a nonce and a beat from the input, signs the beat,
//! and changes the frame by the rest of the input. The frame must be valid if and only if nothing has changed.

#![no_main]

use ka_liveness::{Beat, BeatError, Frame, Key, Nonce};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((nonce, rest)) = bytes.split_first_chunk::<16>() else { return };
    let Some((client, rest)) = rest.split_first_chunk::<8>() else { return };
    let Some((sequence, rest)) = rest.split_first_chunk::<8>() else { return };
    let Some((size, rest)) = rest.split_first() else { return };
    let Some((key, over)) = rest.split_at_checked(usize::from(*size)) else { return };
    let nonce = Nonce::from(*nonce);
    let Ok(key) = Key::new(key) else {
        assert!(*size < 16);
        return;
    };
    let beat = Beat { client: u64::from_be_bytes(*client), sequence: u64::from_be_bytes(*sequence) };
    let Ok(frame) = beat.sign(key, &nonce) else {
        assert_eq!(beat.sequence, 0);
        return;
    };
    let mut other: Frame = frame;
    for (byte, mask) in other.iter_mut().zip(over) {
        *byte ^= mask;
    }
    match Beat::verify(key, &nonce, beat.sequence - 1, &other) {
        Ok(verified) => assert!(other == frame && verified == beat),
        Err(error) => assert!(other != frame && matches!(error, BeatError::NotAFrame | BeatError::Forged)),
    }
    assert_eq!(Beat::client(&other).is_ok(), other[..8] == frame[..8]);
    let stale = Beat::verify(key, &nonce, beat.sequence, &frame);
    assert_eq!(stale, Err(BeatError::Stale { sequence: beat.sequence, last_sequence: beat.sequence }));
});
