//! bpf(2), and the other system calls that `bpf` needs. All `unsafe` code of `bpf` is here.

#![expect(unsafe_code, reason = "bpf(2)")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use libc::{c_int, c_long};

use super::insn::Insn;
use crate::sys::{check, owned};

/// Commands of bpf(2): `enum bpf_cmd` of <linux/bpf.h>.
mod command {
    use libc::c_int;

    pub(super) const MAP_CREATE: c_int = 0;
    pub(super) const MAP_LOOKUP: c_int = 1;
    pub(super) const MAP_UPDATE: c_int = 2;
    pub(super) const PROG_LOAD: c_int = 5;
    pub(super) const OBJ_PIN: c_int = 6;
    pub(super) const OBJ_GET: c_int = 7;
    pub(super) const PROG_ATTACH: c_int = 8;
    pub(super) const PROG_GET_FD_BY_ID: c_int = 13;
    pub(super) const MAP_GET_FD_BY_ID: c_int = 14;
    pub(super) const OBJ_GET_INFO: c_int = 15;
    pub(super) const PROG_QUERY: c_int = 16;
    pub(super) const RAW_TRACEPOINT_OPEN: c_int = 17;
    pub(super) const LINK_CREATE: c_int = 28;
    pub(super) const ITER_CREATE: c_int = 33;
    pub(super) const LINK_DETACH: c_int = 34;
}

/// A kind of BPF program: its type and where it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Runs when a socket of a cgroup connects, listens or is accepted, and at other events.
    SockOps,
    /// Runs before a process in a cgroup sets a socket option.
    SetSockOpt,
    /// Runs for each TCP socket while a process reads from the iterator. `function` is the BTF ID of `bpf_iter_tcp`.
    TcpIter { function: u32 },
    /// Runs at a tracepoint. `event` is the BTF ID of the tracepoint's type.
    Tracepoint { event: u32 },
}

impl Kind {
    /// `enum bpf_prog_type`
    const fn program_type(self) -> u32 {
        match self {
            Self::SockOps => 13,
            Self::SetSockOpt => 25,
            Self::TcpIter { .. } | Self::Tracepoint { .. } => 26,
        }
    }

    /// `enum bpf_attach_type`
    const fn attach_type(self) -> u32 {
        match self {
            Self::SockOps => 3,
            Self::SetSockOpt => 22,
            Self::Tracepoint { .. } => 23,
            Self::TcpIter { .. } => 28,
        }
    }

    /// Returns the BTF ID of the kernel's function or tracepoint that the program is for, or 0.
    const fn target(self) -> u32 {
        match self {
            Self::TcpIter { function: number } | Self::Tracepoint { event: number } => number,
            Self::SockOps | Self::SetSockOpt => 0,
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    program_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; NAME_SIZE],
    interface: u32,
    attach_type: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_function: u32,
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; NAME_SIZE],
}

#[repr(C)]
struct MapElement {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ObjPath {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct ProgAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
struct GetById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    size: u32,
    info: u64,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
struct RawTracepoint {
    name: u64,
    program: u32,
    padding: u32,
}

#[repr(C)]
struct IterCreate {
    link: u32,
    flags: u32,
}

/// The first fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    sizes: [u32; 2],
    code: [u64; 2],
    load_time: u64,
    user: u32,
    map_count: u32,
    maps: u64,
    name: [u8; NAME_SIZE],
}

/// The first fields of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct RawMapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    name: [u8; NAME_SIZE],
}

/// `struct bpf_link_info` of a link to a cgroup.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    link_type: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach_type: u32,
    end: u32,
}

/// `BPF_OBJ_NAME_LEN`: the size of the name of a program or map, including a NUL.
const NAME_SIZE: usize = 16;

/// Calls bpf(2).
fn bpf<T>(command: c_int, attributes: &mut T) -> io::Result<c_long> {
    // SAFETY: the kernel reads and writes at most `size_of::<T>()` bytes of `attributes`. The callers in this file keep
    // the buffers that `attributes` points to alive during the call, and give their true sizes.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) })
}

/// Calls bpf(2) with a command that returns a new descriptor. The kernel sets its close-on-exec flag.
fn bpf_fd<T>(command: c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    owned(bpf(command, attributes)?)
}

/// Converts a reference to an address for bpf(2).
fn address<T: ?Sized>(data: &T) -> u64 {
    std::ptr::from_ref(data).cast::<()>().expose_provenance() as u64
}

/// Converts a descriptor to a number for bpf(2). Open descriptors are never negative.
fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn size(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Converts a name for bpf(2). Truncates a long name.
fn name(text: &str) -> [u8; NAME_SIZE] {
    let mut name = [0; NAME_SIZE];
    for (to, from) in name.iter_mut().zip(text.bytes().take(NAME_SIZE - 1)) {
        *to = from;
    }
    name
}

fn name_of(name: [u8; NAME_SIZE]) -> String {
    let bytes = name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

/// Loads a program. If `log` is not empty, the verifier writes its log there.
pub(super) fn load(kind: Kind, title: &str, insns: &[Insn], log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        program_type: kind.program_type(),
        insn_count: size(insns.len()),
        insns: address(insns),
        // The kernel allows `bpf_seq_write` only in programs with a license that is compatible with the GPL.
        license: address(c"Dual MIT/GPL"),
        log_level: u32::from(!log.is_empty()),
        log_size: size(log.len()),
        log: if log.is_empty() { 0 } else { log.as_mut_ptr().expose_provenance() as u64 },
        name: name(title),
        attach_type: kind.attach_type(),
        attach_function: kind.target(),
        ..ProgLoad::default()
    };
    bpf_fd(command::PROG_LOAD, &mut attributes)
}

/// Makes a map with one value: a `BPF_MAP_TYPE_ARRAY`.
pub(super) fn map_with(title: &str, value: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate {
        map_type: 2,
        key_size: 4,
        value_size: size(value.len()),
        entries: 1,
        name: name(title),
        ..MapCreate::default()
    };
    let map = bpf_fd(command::MAP_CREATE, &mut attributes)?;
    let key = 0_u32;
    let mut attributes = MapElement {
        map: number(map.as_fd()),
        padding: 0,
        key: address(&key),
        value: address(value),
        flags: 0,
    };
    bpf(command::MAP_UPDATE, &mut attributes)?;
    Ok(map)
}

/// Opens a map by its ID.
pub(super) fn map_numbered(id: u32) -> io::Result<OwnedFd> {
    bpf_fd(command::MAP_GET_FD_BY_ID, &mut GetById { id, next: 0, flags: 0 })
}

/// Reads the value of a map that [`map_with`] made. Fails with EINVAL if the map has another type.
pub(super) fn map_value(map: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut info = RawMapInfo::default();
    get_info(map, &mut info)?;
    let key = 0_u32;
    if info.map_type != 2 || info.key_size != 4 || info.value_size > 1 << 16 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // The kernel copies a multiple of 8 bytes.
    let mut value = vec![0_u8; (info.value_size as usize).next_multiple_of(8)];
    let mut attributes = MapElement {
        map: number(map),
        padding: 0,
        key: address(&key),
        value: value.as_mut_ptr().expose_provenance() as u64,
        flags: 0,
    };
    bpf(command::MAP_LOOKUP, &mut attributes)?;
    value.truncate(info.value_size as usize);
    Ok(value)
}

/// Reads the kernel's information about a map, link or program. `T` has the first fields of the kernel's struct.
fn get_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attributes = GetInfo {
        fd: number(object),
        size: size(size_of::<T>()),
        info: std::ptr::from_mut(info).expose_provenance() as u64,
    };
    bpf(command::OBJ_GET_INFO, &mut attributes)?;
    Ok(())
}

/// Pins a link or map at a path in a bpf filesystem. The object exists until the path is removed and all descriptors of
/// the object are closed.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(command::OBJ_PIN, &mut ObjPath { path: address(path.as_c_str()), fd: number(object), flags: 0 })?;
    Ok(())
}

/// Opens the object that is pinned at a path in a bpf filesystem.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf_fd(command::OBJ_GET, &mut ObjPath { path: address(path.as_c_str()), fd: 0, flags: 0 })
}

/// Returns the ID of the cgroup that a link attaches a program to, or 0 if the cgroup has been removed.
pub(super) fn linked_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = RawLinkInfo::default();
    get_info(link, &mut info)?;
    Ok(info.cgroup)
}

/// Detaches a link's program, even if other processes hold the link. Linux 5.9
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(command::LINK_DETACH, &mut number(link))?;
    Ok(())
}

/// Attaches a program to a cgroup until the cgroup is removed. Other programs may be attached too.
pub(super) fn attach(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    /// `BPF_F_ALLOW_MULTI`
    const ALLOW_MULTI: u32 = 2;
    let mut attributes = ProgAttach {
        target: number(cgroup),
        program: number(program),
        attach_type: kind.attach_type(),
        flags: ALLOW_MULTI,
    };
    bpf(command::PROG_ATTACH, &mut attributes)?;
    Ok(())
}

/// Makes a link of a program to a cgroup. The link of an iterator program has no cgroup.
pub(super) fn link(
    program: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
    kind: Kind,
) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: number(program),
        target: cgroup.map_or(0, number),
        attach_type: kind.attach_type(),
        flags: 0,
    };
    bpf_fd(command::LINK_CREATE, &mut attributes)
}

/// Attaches a program to its tracepoint for as long as the returned link exists.
pub(super) fn attach_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = RawTracepoint { name: 0, program: number(program), padding: 0 };
    bpf_fd(command::RAW_TRACEPOINT_OPEN, &mut attributes)
}

/// Opens an iterator. While the descriptor is read to its end, the kernel visits each socket of the caller's network
/// namespace once.
pub(super) fn iterate(link: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    bpf_fd(command::ITER_CREATE, &mut IterCreate { link: number(link), flags: 0 })
}

/// Returns the IDs of the programs that are attached to this cgroup, without those of its ancestors.
pub(super) fn attached(cgroup: BorrowedFd<'_>, kind: Kind) -> io::Result<Vec<u32>> {
    // `BPF_CGROUP_MAX_PROGS`
    let mut ids = vec![0_u32; 64];
    let mut attributes = Query {
        target: number(cgroup),
        attach_type: kind.attach_type(),
        flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: size(ids.len()),
        padding: 0,
    };
    bpf(command::PROG_QUERY, &mut attributes)?;
    ids.truncate(attributes.count as usize);
    Ok(ids)
}

/// Returns the name of a program, and the IDs of its maps.
pub(super) fn program_info(id: u32) -> io::Result<(String, Vec<u32>)> {
    let program = bpf_fd(command::PROG_GET_FD_BY_ID, &mut GetById { id, next: 0, flags: 0 })?;
    let mut maps = vec![0_u32; 8];
    let mut info = RawProgramInfo {
        map_count: size(maps.len()),
        maps: maps.as_mut_ptr().expose_provenance() as u64,
        ..RawProgramInfo::default()
    };
    get_info(program.as_fd(), &mut info)?;
    maps.truncate(info.map_count as usize);
    Ok((name_of(info.name), maps))
}

/// Maps a kernel file whose contents never change. The mapping lasts until this process ends.
pub(super) fn map(file: &File) -> io::Result<&'static [u8]> {
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel chooses an unused address range. If it fails, it returns MAP_FAILED, which is checked below.
    let place = unsafe {
        libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
    };
    if place == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is readable, has `size` bytes and is never unmapped. The callers pass a read-only file of the
    // kernel, so its contents do not change.
    Ok(unsafe { std::slice::from_raw_parts(place.cast(), size) })
}

/// A map to which BPF programs append records: a `BPF_MAP_TYPE_RINGBUF`. Linux 5.8. Documentation/bpf/ringbuf.rst
///
/// The descriptor is readable when there are records.
pub(super) struct RingBuffer {
    map: OwnedFd,
    /// The page with the reader's position, which this process writes.
    consumer: NonNull<AtomicUsize>,
    /// The page with the writers' position. The data follow, twice in a row, so that each record is contiguous.
    producer: NonNull<AtomicUsize>,
    page: usize,
    size: usize,
}

impl RingBuffer {
    /// The flags and the length in a record's header: `BPF_RINGBUF_BUSY_BIT`, `BPF_RINGBUF_DISCARD_BIT`.
    const BUSY: u32 = 1 << 31;
    const DISCARDED: u32 = 1 << 30;
    /// `BPF_RINGBUF_HDR_SZ`
    const HEADER: usize = 8;

    /// Makes a buffer. `bytes` is a power of two and a multiple of the page size.
    pub(super) fn new(title: &str, bytes: u32) -> io::Result<Self> {
        let mut attributes =
            MapCreate { map_type: 27, entries: bytes, name: name(title), ..MapCreate::default() };
        let map = bpf_fd(command::MAP_CREATE, &mut attributes)?;
        let page = usize::try_from(page_size()).map_err(io::Error::other)?;
        let size = bytes as usize;
        let consumer = map_shared(&map, page, libc::PROT_READ | libc::PROT_WRITE, 0)?;
        let producer = map_shared(&map, page + 2 * size, libc::PROT_READ, page).inspect_err(|_| {
            // SAFETY: the page was mapped above, and nothing refers to it.
            unsafe { libc::munmap(consumer.as_ptr(), page) };
        })?;
        Ok(Self { map, consumer: consumer.cast(), producer: producer.cast(), page, size })
    }

    /// Calls `each` for each record that is complete, in the order in which they were written, and removes them.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&[u8])) {
        // SAFETY: both pages are mapped until `self` is dropped, and positions are at their beginning. The kernel
        // accesses the positions atomically.
        let (consumer, producer) = unsafe { (self.consumer.as_ref(), self.producer.as_ref()) };
        let mut position = consumer.load(Ordering::Relaxed);
        while position != producer.load(Ordering::Acquire) {
            let offset = self.page + (position & (self.size - 1));
            // SAFETY: the offset is below `page + size`, and positions are multiples of 8. The kernel has written a
            // record's header before it advances its position.
            let header = unsafe { self.producer.byte_add(offset).cast::<AtomicU32>().as_ref() };
            let word = header.load(Ordering::Acquire);
            if word & Self::BUSY != 0 {
                break;
            }
            let length = (word & !(Self::BUSY | Self::DISCARDED)) as usize;
            if word & Self::DISCARDED == 0 && length <= self.size {
                // SAFETY: a record is at most `size` bytes long, so it ends within the second copy of the data. The
                // record is complete. The kernel does not reuse its place until `consumer` has advanced.
                let record = unsafe {
                    let start = self.producer.byte_add(offset + Self::HEADER).cast::<u8>();
                    std::slice::from_raw_parts(start.as_ptr(), length)
                };
                each(record);
            }
            position = position.wrapping_add((length + Self::HEADER).next_multiple_of(8));
            consumer.store(position, Ordering::Release);
        }
    }
}

impl std::os::fd::AsFd for RingBuffer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for RingBuffer {
    fn drop(&mut self) {
        // SAFETY: both ranges were mapped by `new`, and no reference into them outlives `self`.
        unsafe {
            libc::munmap(self.consumer.as_ptr().cast(), self.page);
            libc::munmap(self.producer.as_ptr().cast(), self.page + 2 * self.size);
        }
    }
}

/// Maps a part of a map, shared with the kernel.
fn map_shared(map: &OwnedFd, size: usize, access: c_int, offset: usize) -> io::Result<NonNull<libc::c_void>> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the kernel chooses an unused address range. If it fails, it returns MAP_FAILED, which is checked below.
    let place =
        unsafe { libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, map.as_raw_fd(), offset) };
    match NonNull::new(place) {
        Some(place) if place.as_ptr() != libc::MAP_FAILED => Ok(place),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the size of a memory page in bytes. sysconf(3)
pub(super) fn page_size() -> i32 {
    // SAFETY: sysconf(3) takes no pointer.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    i32::try_from(size).unwrap_or(4096)
}

/// Runs `work` without a limit on locked memory. Kernels before 5.11 count BPF programs and maps as locked memory. If
/// the limit cannot be read, leaves it unchanged, because it could not be restored.
pub(super) fn with_locked_memory<T>(work: impl FnOnce() -> T) -> T {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let without = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: both pointers refer to a valid `rlimit`. If the kernel refuses, the limit does not change.
    let is_raised = unsafe {
        libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut before) == 0
            && libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const without) == 0
    };
    let result = work();
    if is_raised {
        // SAFETY: the pointer is valid, and the kernel filled `before` in above.
        unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const before) };
    }
    result
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::with_locked_memory;

    /// The test runs itself under strace, which makes the calls fail that read the limit.
    #[test]
    fn a_limit_that_cannot_be_read_is_not_changed() {
        const INSIDE: &str = "KA_TEST_LIMIT";
        const NAME: &str = "bpf::sys::tests::a_limit_that_cannot_be_read_is_not_changed";
        if std::env::var_os(INSIDE).is_some() {
            with_locked_memory(|| ());
            return;
        }
        let calls = |refuse: &[&str]| {
            let mut strace = Command::new("strace");
            strace.args(["-f", "-qq", "-e", "trace=prlimit64,getrlimit,setrlimit"]).args(refuse);
            strace.arg(std::env::current_exe().unwrap()).args([NAME, "--exact"]).env(INSIDE, "1");
            let output = strace.output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let calls = String::from_utf8_lossy(&output.stderr).into_owned();
            calls.lines().filter(|line| line.contains("RLIMIT_MEMLOCK")).count()
        };
        assert!(calls(&[]) >= 2, "the limit is read and raised");
        assert_eq!(calls(&["-e", "inject=prlimit64,getrlimit:error=EPERM"]), 1, "the limit is only read");
    }
}
