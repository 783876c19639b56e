//! The signed heartbeat.

#![expect(unsafe_code, reason = "it is what C calls")]

use ka_core::Errno;
use ka_liveness::{Beat, Frame, Key, Nonce};
use libc::{c_int, size_t};

use crate::errno::{EINVAL, answer};

/// The bytes of a nonce.
pub const KA_BEAT_NONCE_SIZE: usize = 16;

/// The bytes of a heartbeat on the wire.
pub const KA_BEAT_SIZE: usize = 56;

// The header needs literals; these hold them to the format.
const _: () = assert!(KA_BEAT_NONCE_SIZE == Nonce::SIZE && KA_BEAT_SIZE == Beat::SIZE);

/// A heartbeat: a message that only a client of yours can make, good for one connection and one use. It tells a client
/// from a stranger and from a recording. It is no TLS: it covers nothing else that the connection carries, and whoever
/// sits between the two can pass it on.
///
/// The server sends each connection a nonce of its own, KA_BEAT_NONCE_SIZE bytes as they are, before anything else. The
/// client sends KA_BEAT_SIZE bytes a beat; all numbers are big-endian:
///
///    0  4 bytes   "KABT"
///    4  1 byte    the version, 1
///    5  3 bytes   zero
///    8  8 bytes   client
///   16  8 bytes   sequence
///   24  32 bytes  HMAC-SHA-256 of the nonce and the 24 bytes before
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ka_beat {
    /// The client's number: it says whose key to take.
    pub client: u64,
    /// 1 for the first beat of a connection, higher with each.
    pub sequence: u64,
}

/// cbindgen:ptrs-as-arrays=[[nonce; KA_BEAT_NONCE_SIZE]]
/// Makes a nonce, for one connection, with getrandom(2); with /dev/urandom where the kernel does not have that (before
/// 3.17). It waits only while the machine has not gathered randomness yet, early after it has started.
///
///   nonce  where to put its KA_BEAT_NONCE_SIZE bytes.
///
/// Returns 0, or -1 with errno:
///   EINVAL       nonce is NULL.
///   others       what the kernel answered, as EPERM where a sandbox forbids getrandom(2), or ENOENT or EMFILE where
///                /dev/urandom was needed: open(2).
/// After a failure nonce is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_beat_nonce(nonce: *mut u8) -> c_int {
    answer(|| {
        if nonce.is_null() {
            return Err(EINVAL);
        }
        let fresh = Nonce::random()?;
        // SAFETY: C vouches for the bytes.
        unsafe { nonce.cast::<[u8; KA_BEAT_NONCE_SIZE]>().write(*fresh.as_bytes()) };
        Ok(0)
    })
}

/// cbindgen:ptrs-as-arrays=[[nonce; KA_BEAT_NONCE_SIZE], [frame; KA_BEAT_SIZE]]
/// Makes a heartbeat.
///
///   key       the key that the client and its server share.
///   key_size  how many bytes it has, 16 or more; 32 random ones are best. HMAC (RFC 2104) pads a key of up to 64 bytes
///             with zeros, so keys that differ only in zero bytes at their end are the same key.
///   nonce     what the server sent, KA_BEAT_NONCE_SIZE bytes.
///   beat      the client's number, and a sequence: 1 or more, higher than of the beat before.
///   frame     where to put the KA_BEAT_SIZE bytes to send.
///
/// Copies that it makes of the key are wiped before it returns; the key itself is the caller's to wipe.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; key_size is below 16; the sequence is 0.
/// After a failure frame is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_beat_sign(
    key: *const u8,
    key_size: size_t,
    nonce: *const u8,
    beat: *const ka_beat,
    frame: *mut u8,
) -> c_int {
    answer(|| {
        if beat.is_null() || frame.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: C vouches for the pointers, and may have put the beat anywhere.
        let (key, nonce, beat) =
            unsafe { (self::key(key, key_size)?, self::nonce(nonce)?, beat.read_unaligned()) };
        let signed = Beat { client: beat.client, sequence: beat.sequence }.sign(key, &nonce)?;
        // SAFETY: C vouches for the bytes.
        unsafe { frame.cast::<Frame>().write(signed) };
        Ok(0)
    })
}

/// cbindgen:ptrs-as-arrays=[[frame; KA_BEAT_SIZE]]
/// Gets the client that a heartbeat says it is of, for finding its key. Nothing proves it before ka_beat_verify.
///
///   frame   what came, KA_BEAT_SIZE bytes.
///   client  where to put the number.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL.
///   EBADMSG      it is no heartbeat: another magic, another version, or the zero bytes are not zero.
/// After a failure *client is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_beat_client(frame: *const u8, client: *mut u64) -> c_int {
    answer(|| {
        if client.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: C vouches for the pointers, and may have put the number anywhere.
        unsafe {
            let claimed = Beat::client(&self::frame(frame)?)?;
            client.write_unaligned(claimed);
        }
        Ok(0)
    })
}

/// cbindgen:ptrs-as-arrays=[[nonce; KA_BEAT_NONCE_SIZE], [frame; KA_BEAT_SIZE]]
/// Verifies a heartbeat: that it was made with this key, for the connection that has this nonce, and is newer than the
/// last one. The MAC is compared in a time that does not depend on where it differs, and the sequence is looked at only
/// when the MAC is right.
///
///   key            the key of the client that ka_beat_client names.
///   key_size       how many bytes it has, 16 or more. ka_beat_sign says which keys are the same.
///   nonce          what was sent to this connection, KA_BEAT_NONCE_SIZE bytes.
///   last_sequence  that of the last beat which was verified on this connection, 0 before the first.
///   frame          what came, KA_BEAT_SIZE bytes.
///   beat           where to put the client, and the sequence: the next last_sequence.
///
/// Copies that it makes of the key are wiped before it returns; the key itself is the caller's to wipe.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; key_size is below 16.
///   EBADMSG      it is no heartbeat, or garbled, or made with another key or for another connection.
///   ESTALE       it is genuine, but its sequence is not greater than last_sequence: it was sent before.
/// After a failure *beat is as it was.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_beat_verify(
    key: *const u8,
    key_size: size_t,
    nonce: *const u8,
    last_sequence: u64,
    frame: *const u8,
    beat: *mut ka_beat,
) -> c_int {
    answer(|| {
        if beat.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: C vouches for the pointers.
        let (key, nonce, frame) =
            unsafe { (self::key(key, key_size)?, self::nonce(nonce)?, self::frame(frame)?) };
        let Beat { client, sequence } = Beat::verify(key, &nonce, last_sequence, &frame)?;
        // SAFETY: C vouches for the pointer, and may have put it anywhere.
        unsafe { beat.write_unaligned(ka_beat { client, sequence }) };
        Ok(0)
    })
}

/// # Safety
/// NULL, or `key` can be read for `size` bytes as long as the result is used.
unsafe fn key<'a>(key: *const u8, size: size_t) -> Result<Key<'a>, Errno> {
    // No object is larger than half of the address space.
    if key.is_null() || isize::try_from(size).is_err() {
        return Err(EINVAL);
    }
    // SAFETY: the caller vouches for the bytes.
    Ok(Key::new(unsafe { core::slice::from_raw_parts(key, size) })?)
}

/// # Safety
/// NULL, or `nonce` can be read for its size.
unsafe fn nonce(nonce: *const u8) -> Result<Nonce, Errno> {
    // SAFETY: the caller vouches for the bytes.
    let bytes = unsafe { nonce.cast::<[u8; KA_BEAT_NONCE_SIZE]>().as_ref() };
    bytes.map(|bytes| Nonce::from(*bytes)).ok_or(EINVAL)
}

/// # Safety
/// NULL, or `frame` can be read for its size.
unsafe fn frame(frame: *const u8) -> Result<Frame, Errno> {
    // SAFETY: the caller vouches for the bytes.
    unsafe { frame.cast::<Frame>().as_ref() }.copied().ok_or(EINVAL)
}
