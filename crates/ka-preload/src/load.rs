//! When the library is loaded: what it was told is read, what is behind the hooks is found, and the sockets that are
//! open already are seen to.

use libc::c_int;

use crate::next;
use crate::raw::File;
use crate::settings::{self, Settings};
use crate::sockets;

/// glibc and musl call it before the program's own constructors, but after those of libraries that it depends on.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = load;

extern "C" fn load() {
    next::resolve();
    if let Some(settings) = settings::read() {
        // SAFETY: this is the library's constructor.
        unsafe { settings::publish(settings) };
        if let Some(settings) = settings::active() {
            sweep(settings);
        }
    }
}

/// Sees to the sockets that the program was started with, as a service manager's or inetd's, and to those that a
/// constructor made before ours.
fn sweep(settings: &Settings) {
    // Where /proc is not to be seen, descriptors that are likely enough.
    if sweep_proc(settings).is_none() {
        (0..256).for_each(|fd| sockets::arrived(settings, fd));
    }
}

fn sweep_proc(settings: &Settings) -> Option<()> {
    let folder = File::open(c"/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY, 0).ok()?;
    let mut buffer = [0; 4096];
    loop {
        let size = folder.entries(&mut buffer).ok()?;
        if size == 0 {
            return Some(());
        }
        let mut entries = buffer.get(..size)?;
        while let Some((name, rest)) = entry(entries) {
            if let Some(fd) = number(name).filter(|fd| *fd != folder.fd()) {
                sockets::arrived(settings, fd);
            }
            entries = rest;
        }
    }
}

/// The name in a struct linux_dirent64, and what is behind it. getdents64(2)
fn entry(entries: &[u8]) -> Option<(&[u8], &[u8])> {
    const LENGTH: usize = 16;
    const NAME: usize = 19;
    let length = u16::from_ne_bytes(*entries.get(LENGTH..)?.first_chunk()?);
    let (entry, rest) = entries.split_at_checked(length.into())?;
    let name = entry.get(NAME..)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    Some((name.get(..end)?, rest))
}

fn number(name: &[u8]) -> Option<c_int> {
    name.iter().try_fold(0, |number: c_int, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}
