//! Reads the kernel's list of sockets, and its reports of destroyed sockets: netlink messages that may be valid,
//! truncated or nonsense. Valid ones are compared, byte by byte, with a second reader by <linux/netlink.h>,
//! <linux/inet_diag.h> and <linux/tcp.h>.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ka_fuzz::allocations;
use ka_reach::fuzz::{DiagSocket, State, Transfer, read_destroyed, read_diag};
use libfuzzer_sys::fuzz_target;

const DONE: u16 = 3;
const ERROR: u16 = 2;

fuzz_target!(|bytes: &[u8]| {
    check_list(bytes);
    check_destroyed(bytes);
});

fn check_list(bytes: &[u8]) {
    let mut entries = Vec::new();
    let most = 4096 + 64 * bytes.len();
    let is_last = allocations::within(most, || read_diag(bytes, &mut entries));
    let mut found = entries.iter();
    let mut rest = bytes;
    let outcome = loop {
        if rest.is_empty() {
            break Some(false);
        }
        let Some((length, kind)) = header(rest) else { break None };
        match kind {
            // The message may contain a negative errno.
            DONE => {
                let errno = rest.get(16..20).filter(|_| length >= 20);
                let errno = errno.map_or(0, |errno| i32::from_ne_bytes(errno.try_into().unwrap()));
                break (errno >= 0).then_some(true);
            }
            ERROR => break None,
            _ => check(&rest[16..length], &mut found),
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    };
    assert_eq!(is_last.ok(), outcome);
    assert!(found.next().is_none(), "an entry without a message");
    for entry in &entries {
        let (keepalive, is_suspended) = (entry.keepalive(), entry.is_suspended());
        // Both are unknown for sockets that are not connected.
        if !matches!(entry.state, State::Established | State::CloseWait) {
            assert_eq!((keepalive, is_suspended), (None, false));
        }
        assert!(!entry.state.name().is_empty() && !format!("{} {:?}", entry.local, entry.peer).is_empty());
    }
}

/// Each report is a message of its own, and messages of any kind are read. An incomplete one ends the buffer.
fn check_destroyed(bytes: &[u8]) {
    let mut destroyed = Vec::new();
    allocations::within(4096 + 64 * bytes.len(), || read_destroyed(bytes, &mut destroyed));
    let mut found = destroyed.iter();
    let mut rest = bytes;
    while let Some((length, _)) = header(rest) {
        let message = &rest[16..length];
        let mut sockets = found.as_slice().iter().map(|destroyed| &destroyed.socket);
        let before = sockets.len();
        check(message, &mut sockets);
        if sockets.len() < before {
            let transfer = found.next().unwrap().transfer;
            assert_eq!(transfer, info(message).and_then(transferred).unwrap_or_default());
            for is_accepted in [false, true] {
                assert!(!(transfer.has_acknowledged_fin(is_accepted) && transfer.has_data(is_accepted)));
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    assert!(found.next().is_none(), "a socket without a message");
}

/// Returns the first `INET_DIAG_INFO` of a message.
fn info(message: &[u8]) -> Option<&[u8]> {
    let mut at = 72;
    loop {
        let attribute = message.get(at..).filter(|attribute| attribute.len() >= 4)?;
        let short = |at: usize| u16::from_ne_bytes([attribute[at], attribute[at + 1]]);
        // The two highest bits of the kind are flags.
        let (length, kind) = (usize::from(short(0)), short(2) & 0x3fff);
        if !(4..=attribute.len()).contains(&length) {
            return None;
        }
        if kind == 2 {
            return Some(&attribute[4..length]);
        }
        at += length.next_multiple_of(4);
    }
}

/// Reads the fields of a `struct tcp_info`, if it has all of them.
fn transferred(info: &[u8]) -> Option<Transfer> {
    let info = info.get(..216)?;
    let long = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().unwrap());
    Some(Transfer {
        acknowledged: long(120),
        sent: long(200).saturating_sub(long(208)),
        unsent: u32::from_ne_bytes(info[144..148].try_into().unwrap()).into(),
    })
}

/// Returns the length and kind of a message, if it is complete.
fn header(bytes: &[u8]) -> Option<(usize, u16)> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    (bytes.len() >= 16 && (16..=bytes.len()).contains(&length)).then_some((length, kind))
}

/// Compares a `struct inet_diag_msg` with its entry, if it has one.
fn check<'a>(message: &[u8], found: &mut impl Iterator<Item = &'a DiagSocket>) {
    let Some(message) = message.get(..72).map(|head| <&[u8; 72]>::try_from(head).unwrap()) else { return };
    let [family, state, timer, retransmits, ..] = *message;
    let is_ip = matches!(i32::from(family), libc::AF_INET | libc::AF_INET6);
    if !is_ip || !(1..=11).contains(&state) {
        return;
    }
    let entry = found.next().expect("a valid message has no entry");
    let short = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    let word = |at: usize| u32::from_ne_bytes(message[at..at + 4].try_into().unwrap());
    let address = |at: usize| match family {
        2 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&message[at..at + 4]).unwrap())),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&message[at..at + 16]).unwrap())),
    };
    assert_eq!((entry.local.ip(), entry.local.port()), (address(8), short(4)));
    let peer = (short(6) != 0).then(|| (address(24), short(6)));
    assert_eq!(entry.peer.map(|peer| (peer.ip(), peer.port())), peer);
    assert_eq!(entry.state as u8, state);
    assert_eq!(entry.cookie, u64::from(word(44)) | u64::from(word(48)) << 32);
    assert_eq!(entry.inode, word(68));
    // The kernel has no other timers.
    assert_eq!(
        entry.timer.is_some(),
        (1..=4).contains(&timer),
        "timer {timer}, {retransmits}: {:?}",
        entry.timer
    );
    if matches!(state, 1 | 8) {
        let keepalive = match timer {
            0 | 5.. => Some(false),
            2 => Some(true),
            _ => None,
        };
        assert_eq!(entry.keepalive(), keepalive, "timer {timer}");
    }
}
