//! Tests ka_beat_* through the C API: the contract, the vectors of docs/heartbeat.md, and that keys are wiped.

use std::fs;
use std::process::Command;
use std::ptr;

use ka_test::child::{stdout, succeed};
use ka_test::compiler::{LINKS, program};
use ka_test::libka::{RawBeat, call};
use ka_test::path::root;
use libc::{EBADMSG, EINVAL, ESTALE};

const KEY: [u8; 32] = *b"a key that two ends know: it has";

fn nonce() -> Result<[u8; 16], i32> {
    let mut nonce = [0; 16];
    // SAFETY: the nonce has 16 bytes.
    call(|ka| unsafe { (ka.ka_beat_nonce)(nonce.as_mut_ptr()) }).map(|_| nonce)
}

/// Signs a beat, and checks that a failed call writes no frame.
fn sign(key: &[u8], nonce: &[u8; 16], beat: RawBeat) -> Result<[u8; 56], i32> {
    let mut frame = [0x5a; 56];
    // SAFETY: the pointers are valid for the sizes that ka.h requires.
    let result = call(|ka| unsafe {
        (ka.ka_beat_sign)(key.as_ptr(), key.len(), nonce.as_ptr(), &raw const beat, frame.as_mut_ptr())
    });
    assert!(result.is_ok() || frame == [0x5a; 56], "written on failure");
    result.map(|_| frame)
}

fn verify(key: &[u8], nonce: &[u8; 16], last_sequence: u64, frame: &[u8; 56]) -> Result<RawBeat, i32> {
    let mut beat = [0x5a; 2];
    // SAFETY: as above.
    let result = call(|ka| unsafe {
        (ka.ka_beat_verify)(
            key.as_ptr(),
            key.len(),
            nonce.as_ptr(),
            last_sequence,
            frame.as_ptr(),
            &raw mut beat,
        )
    });
    assert!(result.is_ok() || beat == [0x5a; 2], "written on failure");
    result.map(|_| beat)
}

fn client(frame: &[u8; 56]) -> Result<u64, i32> {
    let mut client = 0x5a;
    // SAFETY: as above.
    let result = call(|ka| unsafe { (ka.ka_beat_client)(frame.as_ptr(), &raw mut client) });
    assert!(result.is_ok() || client == 0x5a, "written on failure");
    result.map(|_| client)
}

#[test]
fn a_beat_is_valid_once_on_one_connection() {
    let (one, other) = (nonce().unwrap(), nonce().unwrap());
    assert_ne!(one, other);
    let frame = sign(&KEY, &one, [7, 1]).unwrap();
    assert_eq!(client(&frame), Ok(7));
    assert_eq!(verify(&KEY, &one, 0, &frame), Ok([7, 1]));
    assert_eq!(verify(&KEY, &one, 1, &frame), Err(ESTALE), "again on its own connection");
    assert_eq!(verify(&KEY, &other, 0, &frame), Err(EBADMSG), "on another connection");
    assert_eq!(verify(b"another client has another: this", &one, 0, &frame), Err(EBADMSG));
}

/// RFC 2104: HMAC pads a key with zeros to the size of a block, and hashes a key that is longer. docs/heartbeat.md
#[test]
fn zero_bytes_at_the_end_of_a_key_up_to_one_block_make_no_difference() {
    let nonce = nonce().unwrap();
    let key = |zeros: usize| [&KEY[..], &vec![0; zeros]].concat();
    let frame = sign(&KEY, &nonce, [7, 1]).unwrap();
    for zeros in [1, 16, 32] {
        assert_eq!(sign(&key(zeros), &nonce, [7, 1]), Ok(frame), "{zeros} zero bytes");
        assert_eq!(verify(&key(zeros), &nonce, 0, &frame), Ok([7, 1]), "{zeros} zero bytes");
    }
    // More than a block, and zero bytes in front.
    assert_eq!(verify(&key(33), &nonce, 0, &frame), Err(EBADMSG));
    assert_eq!(verify(&[&[0][..], &KEY].concat(), &nonce, 0, &frame), Err(EBADMSG));
}

#[test]
fn every_flipped_bit_is_ebadmsg() {
    let nonce = nonce().unwrap();
    let frame = sign(&KEY, &nonce, [7, 9]).unwrap();
    for bit in 0..56 * 8 {
        let mut flipped = frame;
        flipped[bit / 8] ^= 1 << (bit % 8);
        // A forged frame is EBADMSG even if its sequence was seen before.
        for last_sequence in [0, 9, u64::MAX] {
            assert_eq!(verify(&KEY, &nonce, last_sequence, &flipped), Err(EBADMSG), "bit {bit}");
        }
        let known = client(&flipped);
        assert_eq!(known.is_err(), bit < 64, "bit {bit}");
        assert!(bit >= 64 || known == Err(EBADMSG));
    }
}

#[test]
fn sequences_must_increase() {
    let nonce = nonce().unwrap();
    assert_eq!(sign(&KEY, &nonce, [7, 0]), Err(EINVAL), "the first is 1");
    let frame = sign(&KEY, &nonce, [7, 5]).unwrap();
    for (last_sequence, answer) in
        [(0, Ok([7, 5])), (4, Ok([7, 5])), (5, Err(ESTALE)), (u64::MAX, Err(ESTALE))]
    {
        assert_eq!(verify(&KEY, &nonce, last_sequence, &frame), answer, "after {last_sequence}");
    }
    let last = sign(&KEY, &nonce, [u64::MAX, u64::MAX]).unwrap();
    assert_eq!(verify(&KEY, &nonce, u64::MAX - 1, &last), Ok([u64::MAX, u64::MAX]));
    assert_eq!(verify(&KEY, &nonce, u64::MAX, &last), Err(ESTALE));
}

/// libka cannot sign sequence 0. This frame was made in Python with the right key, and must be rejected too.
#[test]
fn sequence_0_is_always_rejected() {
    let script = "import hmac; head = b'KABT\\x01\\0\\0\\0' + bytes(16); \
        print((head + hmac.digest(bytes(range(16)), bytes(16) + head, 'sha256')).hex())";
    let frame = hex(stdout(Command::new("python3").args(["-c", script])).trim()).try_into().unwrap();
    let key: Vec<u8> = (0..16).collect();
    assert_eq!(verify(&key, &[0; 16], 0, &frame), Err(ESTALE));
}

#[test]
fn arguments_are_checked_before_the_frame() {
    let nonce = nonce().unwrap();
    let frame = sign(&KEY, &nonce, [7, 1]).unwrap();
    for size in 0..16 {
        assert_eq!(sign(&KEY[..size], &nonce, [7, 1]), Err(EINVAL), "a key of {size} bytes");
        assert_eq!(verify(&KEY[..size], &nonce, 0, &frame), Err(EINVAL), "a key of {size} bytes");
        assert_eq!(verify(&KEY[..size], &nonce, 0, &[0; 56]), Err(EINVAL), "a bad frame as well");
    }
    assert!(sign(&KEY[..16], &nonce, [7, 1]).is_ok());

    let beat: RawBeat = [7, 1];
    let (key, n, beat) = (KEY.as_ptr(), nonce.as_ptr(), &raw const beat);
    let (mut out_frame, mut out_beat, mut out_client) = ([0x5a_u8; 56], [0x5a_u64; 2], 0x5a_u64);
    let (f, b, c) = (out_frame.as_mut_ptr(), &raw mut out_beat, &raw mut out_client);
    let garbage = [0_u8; 56];
    let garbage = garbage.as_ptr();
    // SAFETY: each pointer is NULL or valid, and a key larger than half of the address space is rejected unread.
    let results = unsafe {
        [
            call(|ka| (ka.ka_beat_nonce)(ptr::null_mut())),
            call(|ka| (ka.ka_beat_sign)(ptr::null(), 32, n, beat, f)),
            call(|ka| (ka.ka_beat_sign)(ptr::null(), 0, n, beat, f)),
            call(|ka| (ka.ka_beat_sign)(key, usize::MAX, n, beat, f)),
            call(|ka| (ka.ka_beat_sign)(key, 32, ptr::null(), beat, f)),
            call(|ka| (ka.ka_beat_sign)(key, 32, n, ptr::null(), f)),
            call(|ka| (ka.ka_beat_sign)(key, 32, n, beat, ptr::null_mut())),
            call(|ka| (ka.ka_beat_client)(ptr::null(), c)),
            call(|ka| (ka.ka_beat_client)(garbage, ptr::null_mut())),
            call(|ka| (ka.ka_beat_verify)(ptr::null(), 32, n, 0, garbage, b)),
            call(|ka| (ka.ka_beat_verify)(key, usize::MAX, n, 0, garbage, b)),
            call(|ka| (ka.ka_beat_verify)(key, 32, ptr::null(), 0, garbage, b)),
            call(|ka| (ka.ka_beat_verify)(key, 32, n, 0, ptr::null(), b)),
            call(|ka| (ka.ka_beat_verify)(key, 32, n, 0, garbage, ptr::null_mut())),
        ]
    };
    for (n, result) in results.into_iter().enumerate() {
        assert_eq!(result, Err(EINVAL), "call {n}");
    }
    assert_eq!((out_frame, out_beat, out_client), ([0x5a; 56], [0x5a; 2], 0x5a), "written on failure");
}

/// The output may be at the same place as the inputs.
#[test]
fn arguments_may_overlap() {
    let nonce = nonce().unwrap();
    let wanted = sign(&KEY, &nonce, [7, 1]).unwrap();
    let mut memory = [0_u8; 80];
    memory[..32].copy_from_slice(&KEY);
    memory[32..48].copy_from_slice(&nonce);
    memory[48..56].copy_from_slice(&7_u64.to_ne_bytes());
    memory[56..64].copy_from_slice(&1_u64.to_ne_bytes());
    let at = memory.as_mut_ptr();
    // SAFETY: the 56 bytes of the frame lie over the key, the nonce and the half of the beat.
    unsafe {
        call(|ka| (ka.ka_beat_sign)(at, 32, at.add(32), at.add(48).cast(), at)).unwrap();
        assert_eq!(memory[..56], wanted);
        let at = memory.as_mut_ptr();
        call(|ka| (ka.ka_beat_verify)(KEY.as_ptr(), 32, nonce.as_ptr(), 0, at, at.add(3).cast())).unwrap();
    }
    assert_eq!(
        memory[3..19],
        [7_u64.to_ne_bytes(), 1_u64.to_ne_bytes()].concat(),
        "unaligned, and overlapping the frame"
    );
}

/// A vector of docs/heartbeat.md.
#[derive(Default)]
struct Vector {
    key: Vec<u8>,
    nonce: Vec<u8>,
    client: u64,
    sequence: u64,
    frame: Vec<u8>,
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Reads the last block of the page. A line has a name and a value. A line that begins with blanks continues a value.
fn vectors() -> Vec<Vector> {
    let page = fs::read_to_string(root().join("docs/heartbeat.md")).unwrap();
    let (_, block) = page.split_once("## Test vectors").unwrap();
    let block = block.split("```").nth(1).unwrap().replace("\n         ", "");
    let vector = |text: &str| {
        let mut vector = Vector::default();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (name, value) = line.split_once(' ').unwrap();
            let value = value.trim();
            match name {
                "key" => vector.key = hex(value),
                "nonce" => vector.nonce = hex(value),
                "client" => vector.client = value.parse().unwrap(),
                "sequence" => vector.sequence = value.parse().unwrap(),
                "frame" => vector.frame = hex(value),
                _ => panic!("{line}"),
            }
        }
        vector
    };
    block.split("\n\n").map(vector).collect()
}

#[test]
fn libka_signs_the_test_vectors_of_the_documentation() {
    let vectors = vectors();
    assert!(vectors.len() >= 6);
    for Vector { key, nonce, client: number, sequence, frame } in vectors {
        let (nonce, frame) = (nonce.try_into().unwrap(), frame.try_into().unwrap());
        assert_eq!(sign(&key, &nonce, [number, sequence]), Ok(frame));
        assert_eq!(verify(&key, &nonce, sequence - 1, &frame), Ok([number, sequence]));
        assert_eq!(client(&frame), Ok(number));
    }
}

/// Runs the Python code of the page.
#[test]
fn the_documented_python_signs_the_test_vectors() {
    let page = fs::read_to_string(root().join("docs/heartbeat.md")).unwrap();
    let code = page.split("```python").nth(1).unwrap().split("```").next().unwrap();
    for vector in vectors() {
        let Vector { key, nonce, client, sequence, frame } = vector;
        let call =
            format!("{code}\nprint(beat(bytes({key:?}), bytes({nonce:?}), {client}, {sequence}).hex())");
        assert_eq!(hex(stdout(Command::new("python3").args(["-c", &call])).trim()), frame);
    }
}

#[test]
fn keys_are_wiped_from_the_stack() {
    for link in LINKS {
        succeed(&mut Command::new(program("wipe", link)));
    }
}

#[test]
fn nonces_come_from_urandom_without_getrandom() {
    for link in LINKS {
        succeed(&mut Command::new(program("nonce", link)));
    }
}
