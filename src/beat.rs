//! The signed heartbeat.

#![expect(unsafe_code, reason = "C calls these functions")]

use ka_core::Errno;
use ka_liveness::{Beat, Frame, Key, Nonce};
use libc::{c_int, size_t};

use crate::errno::{EINVAL, answer};

/// The size of a nonce, in bytes.
pub const KA_BEAT_NONCE_SIZE: usize = 16;

/// The size of a heartbeat frame on the wire, in bytes.
pub const KA_BEAT_SIZE: usize = 56;

// cbindgen needs literals. This assertion compares them with the sizes of ka-liveness.
const _: () = assert!(KA_BEAT_NONCE_SIZE == Nonce::SIZE && KA_BEAT_SIZE == Beat::SIZE);

/// A heartbeat: a message that only a client with the key can make, valid for one connection and one use.
///
/// It lets the server tell a client from a stranger and from a replay. It does not replace TLS: it protects nothing
/// else on the connection, and an attacker between the client and the server can forward it.
///
/// The server first sends a nonce to each connection: KA_BEAT_NONCE_SIZE raw bytes, different for each connection. For
/// each beat the client sends KA_BEAT_SIZE bytes. All numbers are big-endian:
///
///   offset  size      content
///    0       4 bytes  "KABT"
///    4       1 byte   version, 1
///    5       3 bytes  zero
///    8       8 bytes  client
///   16       8 bytes  sequence
///   24      32 bytes  HMAC-SHA-256 of the nonce and the 24 bytes before
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ka_beat {
    /// The number of the client. It selects the key.
    pub client: u64,
    /// 1 for the first beat of a connection, and higher for each later beat.
    pub sequence: u64,
}

/// cbindgen:ptrs-as-arrays=[[nonce; KA_BEAT_NONCE_SIZE]]
/// Create a random nonce for one connection.
///
/// The bytes come from getrandom(2), or from /dev/urandom if the kernel does not have getrandom(2) (before 3.17). The
/// call waits only early after boot, until the kernel has gathered enough randomness.
///
///   nonce  receives KA_BEAT_NONCE_SIZE bytes.
///
/// Returns 0, or -1 with errno:
///   EINVAL       nonce is NULL.
///   others       the error of the kernel: EPERM if a sandbox forbids getrandom(2); ENOENT, EMFILE or another error of
///                open(2) if /dev/urandom was needed.
/// After a failure nonce is unchanged.
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
        // SAFETY: `nonce` is not NULL, so the C caller guarantees KA_BEAT_NONCE_SIZE bytes.
        unsafe { nonce.cast::<[u8; KA_BEAT_NONCE_SIZE]>().write(*fresh.as_bytes()) };
        Ok(0)
    })
}

/// cbindgen:ptrs-as-arrays=[[nonce; KA_BEAT_NONCE_SIZE], [frame; KA_BEAT_SIZE]]
/// Create the frame of a heartbeat.
///
///   key       the key that the client shares with its server.
///   key_size  the size of key in bytes, 16 or more. 32 random bytes are best. HMAC (RFC 2104) pads a key of up to 64
///             bytes with zero bytes, so keys that differ only in zero bytes at the end are the same key.
///   nonce     the KA_BEAT_NONCE_SIZE bytes that the server has sent.
///   beat      the number of the client, and a sequence: 1 or more, and higher than that of the previous beat.
///   frame     receives the KA_BEAT_SIZE bytes to send.
///
/// The function wipes its copies of the key before it returns. The caller must wipe the key itself.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; key_size is below 16; the sequence is 0.
/// After a failure frame is unchanged.
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
        // SAFETY: `beat` is not NULL, so it can be read. C does not guarantee its alignment. The C caller passes NULL
        // as `key` and `nonce`, or pointers to as many bytes as ka.h states.
        let (key, nonce, beat) =
            unsafe { (self::key(key, key_size)?, self::nonce(nonce)?, beat.read_unaligned()) };
        let signed = Beat { client: beat.client, sequence: beat.sequence }.sign(key, &nonce)?;
        // SAFETY: `frame` is not NULL, so the C caller guarantees KA_BEAT_SIZE bytes.
        unsafe { frame.cast::<Frame>().write(signed) };
        Ok(0)
    })
}

/// cbindgen:ptrs-as-arrays=[[frame; KA_BEAT_SIZE]]
/// Get the client that a frame names, so that the server can find the key. The name is not proved until
/// ka_beat_verify succeeds.
///
///   frame   the KA_BEAT_SIZE bytes that were received.
///   client  receives the number of the client.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL.
///   EBADMSG      this is not a heartbeat: another magic, another version, or nonzero bytes where zeros must be.
/// After a failure *client is unchanged.
///
/// Thread-safe, async-signal-safe, fork-safe.
/// Since 0.1.0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ka_beat_client(frame: *const u8, client: *mut u64) -> c_int {
    answer(|| {
        if client.is_null() {
            return Err(EINVAL);
        }
        // SAFETY: `client` is not NULL, so it can be written. `frame` is NULL, or the C caller guarantees KA_BEAT_SIZE
        // bytes. C does not guarantee the alignment of `client`.
        unsafe {
            let claimed = Beat::client(&self::frame(frame)?)?;
            client.write_unaligned(claimed);
        }
        Ok(0)
    })
}

/// cbindgen:ptrs-as-arrays=[[nonce; KA_BEAT_NONCE_SIZE], [frame; KA_BEAT_SIZE]]
/// Verify that a frame was made with this key, for the connection with this nonce, and is newer than the last one.
///
/// The time of the MAC comparison does not depend on where the MACs differ. The sequence is checked only if the MAC is
/// right.
///
///   key            the key of the client that ka_beat_client has named.
///   key_size       the size of key in bytes, 16 or more. ka_beat_sign describes which keys are the same.
///   nonce          the KA_BEAT_NONCE_SIZE bytes that were sent to this connection.
///   last_sequence  the sequence of the last verified beat of this connection, or 0 before the first.
///   frame          the KA_BEAT_SIZE bytes that were received.
///   beat           receives the client and the sequence. Pass this sequence as last_sequence next time.
///
/// The function wipes its copies of the key before it returns. The caller must wipe the key itself.
///
/// Returns 0, or -1 with errno:
///   EINVAL       an argument is NULL; key_size is below 16.
///   EBADMSG      this is not a heartbeat, or it was damaged, or made with another key or for another connection.
///   ESTALE       this is a genuine heartbeat, but its sequence is not greater than last_sequence: a replay.
/// After a failure *beat is unchanged.
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
        // SAFETY: the C caller passes NULL, or pointers to as many bytes as ka.h states.
        let (key, nonce, frame) =
            unsafe { (self::key(key, key_size)?, self::nonce(nonce)?, self::frame(frame)?) };
        let Beat { client, sequence } = Beat::verify(key, &nonce, last_sequence, &frame)?;
        // SAFETY: `beat` is not NULL, so it can be written. C does not guarantee its alignment.
        unsafe { beat.write_unaligned(ka_beat { client, sequence }) };
        Ok(0)
    })
}

/// # Safety
/// `key` is NULL, or can be read for `size` bytes as long as the result is used.
unsafe fn key<'a>(key: *const u8, size: size_t) -> Result<Key<'a>, Errno> {
    // A Rust slice cannot be larger than `isize::MAX` bytes, and no C object is.
    if key.is_null() || isize::try_from(size).is_err() {
        return Err(EINVAL);
    }
    // SAFETY: `key` is not NULL, so `size` bytes can be read, and `size` is at most `isize::MAX`.
    Ok(Key::new(unsafe { core::slice::from_raw_parts(key, size) })?)
}

/// # Safety
/// `nonce` is NULL, or can be read for KA_BEAT_NONCE_SIZE bytes.
unsafe fn nonce(nonce: *const u8) -> Result<Nonce, Errno> {
    // SAFETY: the pointer is NULL, or its KA_BEAT_NONCE_SIZE bytes can be read.
    let bytes = unsafe { nonce.cast::<[u8; KA_BEAT_NONCE_SIZE]>().as_ref() };
    bytes.map(|bytes| Nonce::from(*bytes)).ok_or(EINVAL)
}

/// # Safety
/// `frame` is NULL, or can be read for KA_BEAT_SIZE bytes.
unsafe fn frame(frame: *const u8) -> Result<Frame, Errno> {
    // SAFETY: the pointer is NULL, or its KA_BEAT_SIZE bytes can be read.
    unsafe { frame.cast::<Frame>().as_ref() }.copied().ok_or(EINVAL)
}
