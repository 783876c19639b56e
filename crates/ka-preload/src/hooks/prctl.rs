//! prctl(2): the program may install a seccomp filter.
//!
//! All other operations jump to the real function with every argument register and the stack unchanged, because some of
//! them change what a return address is (pointer authentication, shadow stacks).

use core::arch::naked_asm;

use libc::{c_int, c_ulong};

use crate::filter;
use crate::next::{self, Function};
use crate::raw;

/// The offset of the real function in `next::FOUND`, in bytes.
const REAL: usize = Function::prctl as usize * size_of::<usize>();

/// Records a seccomp filter.
#[cfg(target_arch = "x86_64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn prctl() {
    naked_asm!(
        "cmp edi, {set_seccomp}",
        "je 2f",
        // Not rax: a variadic call has the number of its vector arguments there.
        "mov r11, [rip + {found} + {real}]",
        "test r11, r11",
        "jz 2f",
        "jmp r11",
        "2:",
        "jmp {observed}",
        set_seccomp = const libc::PR_SET_SECCOMP,
        found = sym next::FOUND,
        real = const REAL,
        observed = sym observed,
    )
}

/// Records a seccomp filter.
#[cfg(target_arch = "aarch64")]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn prctl() {
    naked_asm!(
        "cmp w0, {set_seccomp}",
        "b.eq 2f",
        "adrp x16, {found} + {real}",
        "ldr x16, [x16, :lo12:{found} + {real}]",
        "cbz x16, 2f",
        "br x16",
        "2:",
        "b {observed}",
        set_seccomp = const libc::PR_SET_SECCOMP,
        found = sym next::FOUND,
        real = const REAL,
        observed = sym observed,
    )
}

/// Makes the call and examines its result. This function also handles calls before the real function was looked up.
unsafe extern "C" fn observed(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int {
    // SAFETY: the program has passed these arguments to prctl(2).
    let result = unsafe { next::prctl(option, [a, b, c, d]) };
    filter::after_prctl(result as isize, &[raw::int(option), 0, 0, 0, 0, 0]);
    result
}
