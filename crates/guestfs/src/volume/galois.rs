//! Arithmetic in GF(2^8) modulo 0x11D, as RAID-6 uses it: addition is exclusive-or, the generator is 2.
//!
//! No tables: a degraded RAID-6 is read rarely, and eight shifts per byte are nothing beside reading the disk.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used
    )
)]

/// The product of two elements.
pub(crate) fn multiply(left: u8, right: u8) -> u8 {
    let (mut a, mut b, mut product) = (left, right, 0_u8);
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1D };
        b >>= 1;
    }
    product
}

/// The generator to this power.
pub(crate) fn power(exponent: usize) -> u8 {
    (0..exponent % 255).fold(1, |value, _| multiply(value, 2))
}

/// One over an element; zero has none and gives zero.
pub(crate) fn inverse(value: u8) -> u8 {
    // a^255 = 1, so a^254 is the inverse.
    (0..254).fold(1, |product, _| multiply(product, value))
}

/// `target += other`, byte by byte.
pub(crate) fn add(target: &mut [u8], other: &[u8]) {
    for (byte, more) in target.iter_mut().zip(other) {
        *byte ^= more;
    }
}

/// `target *= factor`.
pub(crate) fn scale(target: &mut [u8], factor: u8) {
    let table = products(factor);
    for byte in target {
        *byte = table.get(usize::from(*byte)).copied().unwrap_or(0);
    }
}

/// `target += other * factor`.
pub(crate) fn add_scaled(target: &mut [u8], other: &[u8], factor: u8) {
    let table = products(factor);
    for (byte, more) in target.iter_mut().zip(other) {
        *byte ^= table.get(usize::from(*more)).copied().unwrap_or(0);
    }
}

fn products(factor: u8) -> [u8; 256] {
    let mut table = [0; 256];
    for (value, product) in (0..=u8::MAX).zip(&mut table) {
        *product = multiply(value, factor);
    }
    table
}
