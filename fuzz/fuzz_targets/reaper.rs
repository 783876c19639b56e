//! Compares a reaper with a naive model after the same steps. A step is six bytes: the call, and its argument.

#![no_main]

use std::collections::BTreeMap;

use ka_liveness::Reaper;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((timeout, steps)) = bytes.split_first_chunk::<4>() else { return };
    let timeout_ms = u32::from_le_bytes(*timeout);
    let Ok(mut reaper) = Reaper::new(timeout_ms) else { return };
    let timeout = u64::from(timeout_ms);
    // Each connection has its time and its turn. Of two with the same time, the earlier turn comes first.
    let mut model: BTreeMap<i32, (u64, usize)> = BTreeMap::new();
    let (mut now, mut latest) = (0_u64, 0_u64);
    for (turn, step) in steps.chunks_exact(6).enumerate() {
        let number = i32::from_le_bytes([step[2], step[3], step[4], step[5]]);
        // Most numbers are small, like those that the kernel hands out, so that they repeat.
        let fd = if step[1] < 224 { number & 0x3ff } else { number };
        match step[0] % 6 {
            0 | 1 => {
                assert_eq!(reaper.touch(fd, now).is_ok(), fd >= 0);
                if fd >= 0 {
                    latest = latest.max(now);
                    model.insert(fd, (latest, turn));
                }
            }
            2 => assert_eq!(reaper.forget(fd), model.remove(&fd).is_some()),
            3 => {
                latest = latest.max(now);
                let mut due: Vec<_> = model
                    .iter()
                    .filter(|(_, (time, _))| latest - time >= timeout)
                    .map(|(fd, (_, turn))| (*turn, *fd))
                    .collect();
                due.sort_unstable();
                due.truncate(usize::from(step[1]));
                let due: Vec<_> = due.into_iter().map(|(_, fd)| fd).collect();
                assert_eq!(reaper.expired(now).take(step[1].into()).collect::<Vec<_>>(), due);
                model.retain(|fd, _| !due.contains(fd));
            }
            4 => now = now.saturating_add_signed(number.into()),
            _ => now = now.rotate_left(u32::from(step[1])) ^ u64::from(number.unsigned_abs()),
        }
        let oldest = model.values().map(|(time, _)| *time).min();
        let next = oldest.map(|oldest| timeout.saturating_sub(latest.max(now) - oldest));
        assert_eq!(reaper.next_due_ms(now).map(u64::from), next);
        assert_eq!(reaper.len(), model.len());
    }
});
