//! Tests valid and invalid heartbeats. The tests of libka check the test vectors of docs/heartbeat.md.

use std::collections::BTreeSet;

use ka_liveness::{Beat, BeatError, Frame, Key, Nonce};
use proptest::prelude::*;

const KEY: &[u8] = b"sixteen bytes or more: it has 32";

fn key() -> Key<'static> {
    Key::new(KEY).unwrap()
}

fn nonce() -> Nonce {
    Nonce::from([7; Nonce::SIZE])
}

fn signed(client: u64, sequence: u64) -> Frame {
    Beat { client, sequence }.sign(key(), &nonce()).unwrap()
}

/// Returns one copy of the bytes for each of their bits, with that bit flipped.
fn flipped(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    (0..bytes.len() * 8).map(|bit| {
        let mut other = bytes.to_vec();
        other[bit / 8] ^= 1 << (bit % 8);
        (bit, other)
    })
}

#[test]
fn every_flipped_bit_is_rejected() {
    let frame = signed(1, 2);
    for (bit, other) in flipped(&frame) {
        let other = other.try_into().unwrap();
        // The first 64 bits are magic, version and zeros. A change after them makes the MAC wrong.
        let error = if bit < 64 { BeatError::NotAFrame } else { BeatError::Forged };
        assert_eq!(Beat::verify(key(), &nonce(), 0, &other), Err(error), "bit {bit}");
        assert_eq!(Beat::client(&other).is_err(), bit < 64, "bit {bit}");
    }
    for (bit, other) in flipped(nonce().as_bytes()) {
        let other = Nonce::from(<[u8; 16]>::try_from(other).unwrap());
        assert_eq!(Beat::verify(key(), &other, 0, &frame), Err(BeatError::Forged), "bit {bit} of the nonce");
    }
    for (bit, other) in flipped(KEY) {
        let other = Key::new(&other).unwrap();
        assert_eq!(Beat::verify(other, &nonce(), 0, &frame), Err(BeatError::Forged), "bit {bit} of the key");
    }
    assert_eq!(Beat::verify(key(), &nonce(), 0, &frame), Ok(Beat { client: 1, sequence: 2 }));
}

#[test]
fn a_genuine_frame_with_an_old_sequence_number_is_stale() {
    let frame = signed(1, 5);
    for last_sequence in [5, 6, u64::MAX] {
        let stale = BeatError::Stale { sequence: 5, last_sequence };
        assert_eq!(Beat::verify(key(), &nonce(), last_sequence, &frame), Err(stale));
        let mut forged = frame;
        forged[55] ^= 1;
        assert_eq!(Beat::verify(key(), &nonce(), last_sequence, &forged), Err(BeatError::Forged));
    }
    assert!(Beat::verify(key(), &nonce(), 4, &frame).is_ok());
    assert!(Beat::verify(key(), &nonce(), u64::MAX - 1, &signed(1, u64::MAX)).is_ok());
    assert_eq!(Beat { client: 1, sequence: 0 }.sign(key(), &nonce()), Err(BeatError::NoSequence));
}

#[test]
fn short_keys_are_rejected_and_debug_output_hides_keys() {
    for size in 0..64 {
        let made = Key::new(&[1; 64][..size]).map(|_| ());
        let answer = if size < 16 { Err(BeatError::ShortKey(size)) } else { Ok(()) };
        assert_eq!(made, answer, "{size} bytes");
    }
    assert_eq!(format!("{:?}", key()), "Key(32 bytes)");
}

#[test]
fn nonces_differ() {
    let nonces: BTreeSet<_> = (0..1000).map(|_| *Nonce::random().unwrap().as_bytes()).collect();
    assert_eq!(nonces.len(), 1000);
}

proptest! {
    #[test]
    fn signed_beats_are_verified(
        key in prop::collection::vec(any::<u8>(), 16..200),
        nonce: [u8; 16],
        client: u64,
        sequence in 1..=u64::MAX,
    ) {
        let (key, nonce) = (Key::new(&key).unwrap(), Nonce::from(nonce));
        let beat = Beat { client, sequence };
        let frame = beat.sign(key, &nonce).unwrap();
        prop_assert_eq!(Beat::client(&frame), Ok(client));
        prop_assert_eq!(Beat::verify(key, &nonce, sequence - 1, &frame), Ok(beat));
    }
}

#[test]
fn error_messages_name_the_wrong_argument() {
    for (error, message) in [
        (BeatError::ShortKey(15), "the key has 15 bytes: it must have 16 or more"),
        (
            BeatError::NoRandomness(ka_core::Errno(libc::EPERM)),
            "no random bytes: the kernel answered errno 1",
        ),
        (BeatError::NoSequence, "the sequence is 0: the first is 1"),
        (BeatError::NotAFrame, "not a heartbeat of version 1"),
        (BeatError::Forged, "not signed with this client's key for this connection"),
        (BeatError::Stale { sequence: 3, last_sequence: 4 }, "sequence 3 was seen before: 4 was the last"),
    ] {
        assert_eq!(error.to_string(), message);
    }
}
