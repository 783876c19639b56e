//! Fuzzes how `ka run` and `ka check` read a program and /etc/ld.so.cache. The file may contain anything. Reading must
//! end soon, without a panic, and with memory bounded by a small multiple of the file's size. If the ELF header is
//! sound, the results must agree with it.

#![no_main]

use std::cell::OnceCell;
use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use ka_fuzz::allocations;
use ka_reach::fuzz::{CLibrary, Cache, Elf, imports};
use libfuzzer_sys::fuzz_target;

thread_local!(static FILE: OnceCell<(File, PathBuf)> = const { OnceCell::new() });

fuzz_target!(|bytes: &[u8]| {
    FILE.with(|file| {
        let (file, path) = file.get_or_init(|| {
            // SAFETY: the descriptor is new, and nothing else owns it.
            let file = unsafe {
                let fd: c_int = libc::memfd_create(c"elf".as_ptr(), libc::MFD_CLOEXEC);
                assert!(fd >= 0);
                File::from_raw_fd(fd)
            };
            let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
            (file, path)
        });
        file.set_len(0).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        // The library keeps the bytes that it has read, and returns copies.
        let most = 16 * 1024 + 8 * bytes.len();
        let found = allocations::within(most, || Elf::read(path)).unwrap();
        let has_imports = allocations::within(most, || imports(path, &["socket", "connect"])).unwrap();
        let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
        assert!(has_imports != Some(true) || has(b"socket\0") || has(b"connect\0"));
        cache(bytes);
        if let Some(found) = found {
            check(bytes, &found);
            if found.calls_sockets(path).unwrap() {
                assert!(has(b"\x0f\x05") || has(b"\x01\x00\x00\xd4"));
            }
            assert!(found.fits(&found));
            assert_eq!(Elf::read(path).unwrap(), Some(found));
        }
    });
});

/// Reads a file as /etc/ld.so.cache. The paths found for a name must be those of the entries with this name, which are
/// read a second time here, one by one.
fn cache(bytes: &[u8]) {
    let number = |from: &[u8], at: usize| {
        let bytes = from.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().unwrap()) as usize)
    };
    // Each string ends with a NUL.
    let text = |from: &[u8], at: usize| {
        let rest = from.get(at..)?;
        rest.iter().position(|byte| *byte == 0).map(|end| rest[..end].to_vec())
    };
    let Some(found) = Cache::new(bytes.to_vec()) else { return };
    let start = if bytes.starts_with(b"glibc-ld") {
        0
    } else {
        (16 + 12 * number(bytes, 12).unwrap()).div_ceil(8) * 8
    };
    let own = &bytes[start..];
    let entries = (0..number(own, 20).unwrap()).map(|n| 48 + 24 * n);
    let entries: Vec<_> =
        entries.map(|at| [4, 8].map(|word| text(own, number(own, at + word).unwrap()))).collect();
    for [name, _] in entries.iter().take(3) {
        let Some(name) = name else { continue };
        let is_whole = |other: &Option<Vec<u8>>| other.as_ref() == Some(name);
        let paths: Vec<_> =
            found.paths(name).map(|path| path.as_os_str().as_encoded_bytes().to_vec()).collect();
        let named: Vec<_> = entries
            .iter()
            .filter(|[other, _]| is_whole(other))
            .filter_map(|[_, path]| path.clone())
            .collect();
        assert_eq!(paths, named);
    }
}

/// Reads the loader from the first bytes and the first segment that names one, by elf(5).
fn check(bytes: &[u8], found: &Elf) {
    let is_64 = bytes[4] == 2;
    let number = |at: usize, size: usize| -> Option<u64> {
        let mut digits = bytes.get(at..at.checked_add(size)?)?.to_vec();
        if bytes[5] == 1 {
            digits.reverse();
        }
        Some(digits.into_iter().fold(0, |number, digit| number << 8 | u64::from(digit)))
    };
    assert_eq!(found.is_64, is_64);
    assert_eq!(Some(u64::from(found.machine.0)), number(18, 2));
    assert_eq!(Some(found.is_position_independent), number(16, 2).map(|kind| kind == 3));
    assert!(!found.machine_name().is_empty());

    let (word, table, count, entry) = if is_64 { (8, 32, 56, 56) } else { (4, 28, 44, 32) };
    let loader = || {
        let start = usize::try_from(number(table, word)?).ok()?;
        // 0xffff means that the number is in the first section header. The reader ignores such files.
        let count =
            Some(usize::try_from(number(count, 2)?).ok()?).filter(|count| *count < 0xffff && start > 0)?;
        let at = (0..count).map(|n| start + n * entry).find(|at| number(*at, 4) == Some(3))?;
        let (offset, size) = if is_64 { (at + 8, at + 32) } else { (at + 4, at + 16) };
        let offset = usize::try_from(number(offset, word)?).ok()?;
        let size = usize::try_from(number(size, word)?).ok().filter(|size| *size <= 4096)?;
        let place = bytes.get(offset..offset.checked_add(size)?)?;
        let end = place.iter().position(|byte| *byte == 0)?;
        Some(place[..end].to_vec())
    };
    if number(count, 2) != Some(0xffff) {
        assert_eq!(found.loader, loader());
    }
    let name = found.loader.as_deref().and_then(|path| path.rsplit(|byte| *byte == b'/').next());
    let starts =
        |prefixes: &[&[u8]]| name.is_some_and(|name| prefixes.iter().any(|one| name.starts_with(one)));
    let libc = if starts(&[b"ld-musl-"]) {
        CLibrary::Musl
    } else if starts(&[b"ld-linux", b"ld64.so", b"ld.so"]) {
        CLibrary::Glibc
    } else {
        CLibrary::Unknown
    };
    assert_eq!(found.libc(), found.loader.as_ref().map(|_| libc));
    assert!(!(found.is_loader() && found.loader.is_some()));
    // If the reader finds Go, the file contains one of Go's marks.
    let has = |mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
    if found.is_go {
        assert!(has(b"\xff Go buildinf:") || has(b".go.buildinfo") || has(b".note.go.buildid"));
    }
}
