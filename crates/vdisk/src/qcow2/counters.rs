//! Reference counts of 1 to 64 bits in a refcount block. Pure.
//!
//! Widths below a byte count from the least significant bit; wider ones are big-endian.

use crate::field::{be16, be32, be64, index, put};

/// Counters in a block of `block_bytes`.
pub(super) fn per_block(block_bytes: u64, order: u32) -> u64 {
    block_bytes
        .saturating_mul(8)
        .checked_shr(order)
        .unwrap_or(0)
        .max(1)
}

/// The greatest count that `order` can hold.
pub(super) fn greatest(order: u32) -> u64 {
    let bits = 1u32.checked_shl(order).unwrap_or(64);
    1u64.checked_shl(bits).unwrap_or(0).wrapping_sub(1)
}

/// Byte and bit where a counter narrower than a byte begins, and its mask.
fn narrow(order: u32, number: u64) -> (usize, u32, u8) {
    let per_byte_log = 3u32.saturating_sub(order);
    let byte = index(number.checked_shr(per_byte_log).unwrap_or(0));
    let within = number
        & 1u64
            .checked_shl(per_byte_log)
            .unwrap_or(1)
            .saturating_sub(1);
    let shift = u32::try_from(within.checked_shl(order).unwrap_or(0)).unwrap_or(0);
    (
        byte,
        shift,
        u8::try_from(greatest(order)).unwrap_or(u8::MAX),
    )
}

/// The counter `number` of a block; 0 behind its end.
pub(super) fn get(block: &[u8], order: u32, number: u64) -> u64 {
    let at = |width: u64| index(number.saturating_mul(width));
    match order {
        0..=2 => {
            let (byte, shift, mask) = narrow(order, number);
            let stored = block.get(byte).copied().unwrap_or(0);
            u64::from(stored.checked_shr(shift).unwrap_or(0) & mask)
        }
        3 => block.get(at(1)).copied().map_or(0, u64::from),
        4 => be16(block, at(2), "refcount").map_or(0, u64::from),
        5 => be32(block, at(4), "refcount").map_or(0, u64::from),
        _ => be64(block, at(8), "refcount").unwrap_or(0),
    }
}

/// Sets the counter `number`; `value` fits ([`greatest`]).
pub(super) fn set(block: &mut [u8], order: u32, number: u64, value: u64) {
    let at = |width: u64| index(number.saturating_mul(width));
    match order {
        0..=2 => {
            let (byte, shift, mask) = narrow(order, number);
            if let Some(stored) = block.get_mut(byte) {
                let value = u8::try_from(value).unwrap_or(mask) & mask;
                *stored &= !mask.checked_shl(shift).unwrap_or(0);
                *stored |= value.checked_shl(shift).unwrap_or(0);
            }
        }
        3 => put(
            block,
            at(1),
            &u8::try_from(value).unwrap_or(u8::MAX).to_be_bytes(),
        ),
        4 => put(
            block,
            at(2),
            &u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes(),
        ),
        5 => put(
            block,
            at(4),
            &u32::try_from(value).unwrap_or(u32::MAX).to_be_bytes(),
        ),
        _ => put(block, at(8), &value.to_be_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::{get, greatest, per_block, set};

    #[test]
    fn every_width_keeps_neighbours_apart() {
        for order in 0..=6 {
            let mut block = vec![0u8; 64];
            let count = per_block(64, order);
            for number in 0..count {
                set(
                    &mut block,
                    order,
                    number,
                    (number * 7 + 1) & greatest(order),
                );
            }
            for number in 0..count {
                assert_eq!(
                    get(&block, order, number),
                    (number * 7 + 1) & greatest(order),
                    "order {order}"
                );
            }
        }
    }

    #[test]
    fn narrow_counters_begin_at_the_least_significant_bit() {
        let mut block = [0u8; 2];
        set(&mut block, 0, 1, 1);
        set(&mut block, 2, 2, 0xa);
        assert_eq!(block, [0x02, 0x0a]);
        assert_eq!(greatest(6), u64::MAX);
        assert_eq!(greatest(0), 1);
    }
}
