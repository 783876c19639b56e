//! syscall(2), which can make any of the hooked calls by number.
//!
//! The shim handles only the numbers of hooked calls. All other calls must reach the real function unchanged: a child
//! of clone returns from the call on another stack, and after vfork the call returns twice on the same stack. So this
//! hook jumps to the real function, and changes neither the argument registers nor the stack.

use core::arch::naked_asm;

use libc::{c_int, c_long};

use super::stub::{self, After, Arguments, Before};
use super::{accept, connect, listen, recv, send, setsockopt, socket};
use crate::{filter, next};

/// Jumps to `hooked` for the number of a hooked call, and to the real function for any other.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() {
    naked_asm!(
        // For the numbers from socket (41) to setsockopt (54), a bit mask has the hooked calls. Higher numbers follow.
        "lea rax, [rdi - {first}]",
        "cmp rax, {last} - {first}",
        "ja 2f",
        "mov r10d, {hooked_bits}",
        "bt r10d, eax",
        "jc 3f",
        "jmp 4f",
        "2:",
        "cmp rdi, {accept4}",
        "je 3f",
        "cmp rdi, {recvmmsg}",
        "je 3f",
        "cmp rdi, {sendmmsg}",
        "je 3f",
        "cmp rdi, {prctl}",
        "je 3f",
        "cmp rdi, {seccomp}",
        "je 3f",
        "4:",
        "mov rax, [rip + {real}]",
        "test rax, rax",
        "jz 5f",
        "jmp rax",
        "3:",
        "jmp {hooked}",
        "5:",
        "jmp {early}",
        first = const libc::SYS_socket,
        last = const libc::SYS_setsockopt,
        hooked_bits = const bits(),
        accept4 = const libc::SYS_accept4,
        recvmmsg = const libc::SYS_recvmmsg,
        sendmmsg = const libc::SYS_sendmmsg,
        prctl = const libc::SYS_prctl,
        seccomp = const libc::SYS_seccomp,
        real = sym next::FOUND,
        hooked = sym hooked,
        early = sym early,
    )
}

/// Returns a mask with a bit for each hooked call, relative to socket(2).
#[cfg(target_arch = "x86_64")]
const fn bits() -> u32 {
    let hooked = [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_accept,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_recvmsg,
        libc::SYS_listen,
        libc::SYS_setsockopt,
    ];
    let (mut bits, mut rest) = (0, hooked.as_slice());
    while let [number, others @ ..] = rest {
        bits |= 1 << number.wrapping_sub(libc::SYS_socket);
        rest = others;
    }
    bits
}

/// Jumps to `hooked` for the number of a hooked call, and to the real function for any other.
#[cfg(target_arch = "aarch64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn syscall() {
    naked_asm!(
        "cmp x0, {socket}", "b.eq 3f",
        "cmp x0, {listen}", "b.eq 3f",
        "cmp x0, {accept}", "b.eq 3f",
        "cmp x0, {connect}", "b.eq 3f",
        "cmp x0, {sendto}", "b.eq 3f",
        "cmp x0, {setsockopt}", "b.eq 3f",
        "cmp x0, {sendmsg}", "b.eq 3f",
        "cmp x0, {recvmsg}", "b.eq 3f",
        "cmp x0, {accept4}", "b.eq 3f",
        "cmp x0, {recvmmsg}", "b.eq 3f",
        "cmp x0, {sendmmsg}", "b.eq 3f",
        "cmp x0, {prctl}", "b.eq 3f",
        "cmp x0, {seccomp}", "b.eq 3f",
        "adrp x16, {real}",
        "ldr x16, [x16, :lo12:{real}]",
        "cbz x16, 5f",
        "br x16",
        "3:",
        "b {hooked}",
        "5:",
        "b {early}",
        socket = const libc::SYS_socket,
        listen = const libc::SYS_listen,
        accept = const libc::SYS_accept,
        connect = const libc::SYS_connect,
        sendto = const libc::SYS_sendto,
        setsockopt = const libc::SYS_setsockopt,
        sendmsg = const libc::SYS_sendmsg,
        recvmsg = const libc::SYS_recvmsg,
        accept4 = const libc::SYS_accept4,
        recvmmsg = const libc::SYS_recvmmsg,
        sendmmsg = const libc::SYS_sendmmsg,
        prctl = const libc::SYS_prctl,
        seccomp = const libc::SYS_seccomp,
        real = sym next::FOUND,
        hooked = sym hooked,
        early = sym early,
    )
}

/// Makes any call if the real function was not looked up yet.
unsafe extern "C" fn early(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    // SAFETY: the program has passed these arguments to syscall(2).
    unsafe { next::syscall(number, [a, b, c, d, e, f]) }
}

/// Makes a hooked call, with the steps of its hook before and after it.
unsafe extern "C" fn hooked(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let arguments = [a, b, c, d, e, f];
    let (before, after): (Before, After) = match number {
        libc::SYS_setsockopt => {
            /// # Safety
            /// As for setsockopt(2).
            unsafe fn make(arguments: &Arguments) -> c_int {
                // SAFETY: the caller guarantees that the arguments are valid for setsockopt(2).
                unsafe { next::syscall(libc::SYS_setsockopt, *arguments) as c_int }
            }
            // SAFETY: `make` calls setsockopt(2) with the arguments that are passed to it.
            return unsafe { setsockopt::judged(&arguments, make) }.into();
        }
        libc::SYS_connect => (connect::before, stub::nothing_after),
        libc::SYS_listen => (listen::before, stub::nothing_after),
        libc::SYS_sendto => (send::before_sendto, stub::nothing_after),
        libc::SYS_sendmsg => (send::before_sendmsg, stub::nothing_after),
        libc::SYS_sendmmsg => (send::before_sendmmsg, stub::nothing_after),
        libc::SYS_recvmsg => (recv::before, recv::after_recvmsg),
        libc::SYS_recvmmsg => (recv::before, recv::after_recvmmsg),
        libc::SYS_socket => (stub::nothing_before, socket::after),
        libc::SYS_accept | libc::SYS_accept4 => (stub::nothing_before, accept::after),
        libc::SYS_prctl => (stub::nothing_before, filter::after_prctl),
        _ => (stub::nothing_before, filter::after_seccomp),
    };
    before(&arguments);
    // SAFETY: the program has passed these arguments to syscall(2).
    let result = unsafe { next::syscall(number, arguments) };
    // SAFETY: the kernel has just completed the call with these arguments.
    unsafe { after(result as isize, &arguments) };
    result
}
