//! Parses the files of /proc that the command reads: status, stat, links of descriptors, entries of folders, and
//! mounts. They contain names that any user may choose.

#![no_main]

use std::os::unix::ffi::OsStrExt as _;

use ka_fuzz::allocations;
use ka_reach::fuzz::{StatusFields, cgroup_mount, numbers_in, socket_inode, stat_field};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    allocations::within(4096 + 256 * bytes.len(), || match kind % 5 {
        0 => check_status(bytes),
        1 => check_stat(bytes),
        2 => check_link(bytes),
        3 => check_entries(bytes),
        _ => check_mount(bytes),
    });
});

/// Compares the fields, one per line. The last field of a name wins. The process's name cannot add a field.
fn check_status(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let status = StatusFields::parse(&text);
    let field = |name: &str| {
        let mut values = text.lines().rev().filter_map(|line| line.split_once(':'));
        values.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
    };
    let word = |name: &str, place: usize| field(name).and_then(|value| value.split_whitespace().nth(place));
    let number = |name, place| word(name, place).and_then(|word| word.parse::<u64>().ok());
    assert_eq!(status.user().map(u64::from), number("Uid", 1).filter(|user| *user <= u32::MAX.into()));
    for user in [0, 1000] {
        assert_eq!(status.has_only_user(user), (0..3).all(|place| number("Uid", place) == Some(user.into())));
    }
    let leader = number("Tgid", 0).and_then(|pid| i32::try_from(pid).ok());
    assert_eq!((status.leader(), status.threads()), (leader, number("Threads", 0).unwrap_or(1)));
    assert_eq!(status.is_zombie(), field("State").is_some_and(|state| state.starts_with('Z')));
    let capabilities = word("CapEff", 0).and_then(|word| u64::from_str_radix(word, 16).ok());
    for bit in [12, 19, 39] {
        assert_eq!(status.has_capability(bit), capabilities.is_some_and(|set| set >> bit & 1 == 1));
    }
}

/// Compares the numbers after the name in parentheses. The name itself may contain parentheses.
fn check_stat(bytes: &[u8]) {
    let behind = bytes.iter().rposition(|byte| *byte == b')').map_or(bytes, |at| &bytes[at + 1..]);
    let fields: Option<Vec<&str>> =
        std::str::from_utf8(behind).ok().map(|text| text.split_whitespace().collect());
    for place in [0, 2, 3, 9, 22, 52] {
        let field =
            fields.as_ref().and_then(|fields| fields.get(usize::checked_sub(place, 3)?)?.parse().ok());
        assert_eq!(stat_field(bytes, place), field);
    }
}

/// `socket:[INODE]`
fn check_link(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).ok();
    let digits = text.and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
    let inode = digits.and_then(|digits| digits.parse::<u32>().ok());
    assert_eq!(socket_inode(bytes), inode);
}

/// Compares a sequence of `struct linux_dirent64`.
fn check_entries(bytes: &[u8]) {
    let mut wanted = Vec::new();
    let mut at = 0;
    while at + 18 <= bytes.len() {
        let length = usize::from(u16::from_ne_bytes([bytes[at + 16], bytes[at + 17]]));
        let name = bytes.get(at + 19..at + length).unwrap_or_default();
        let name: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
        wanted.extend(String::from_utf8(name).ok().and_then(|name| name.parse::<i32>().ok()));
        at += length.max(19);
    }
    assert_eq!(numbers_in(bytes).collect::<Vec<_>>(), wanted);
}

/// A line of mountinfo: number, parent, device, root, place, options, more of them, a dash, kind. proc_pid_mountinfo(5)
fn check_mount(line: &[u8]) {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().enumerate().skip(5).find(|(_, field)| **field == b"-").map(|(at, _)| at);
    let kind = dash.and_then(|dash| fields.get(dash + 1));
    let wanted = kind.filter(|kind| **kind == b"cgroup2").map(|_| {
        let mut place = Vec::new();
        let mut at = 0;
        while at < fields[4].len() {
            // A byte is itself, or a backslash and three octal digits.
            let code = fields[4].get(at..at + 4).filter(|code| {
                code[0] == b'\\'
                    && code[1..].iter().all(|digit| (b'0'..=b'7').contains(digit))
                    && code[1] < b'4'
            });
            place.push(code.map_or(fields[4][at], |code| {
                code[1..].iter().fold(0, |byte, digit| byte << 3 | (digit - b'0'))
            }));
            at += if code.is_some() { 4 } else { 1 };
        }
        (fields[3].to_vec(), place)
    });
    let found = cgroup_mount(line).map(|(shown, place)| (shown, place.as_os_str().as_bytes().to_vec()));
    assert_eq!(found, wanted);
}
