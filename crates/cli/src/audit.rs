//! How change tracking is audited, as a command line says it: a share of the blocks, and what the sample is drawn from.

use crate::keys;

/// A seed that nobody guesses.
pub fn random_seed() -> anyhow::Result<u64> {
    let mut seed = [0; 8];
    repo::Random::fill(keys::environment().random.as_ref(), &mut seed)?;
    Ok(u64::from_le_bytes(seed))
}

/// A share as so many of a million blocks.
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the share was checked to lie between 0 and 1"
)]
pub fn per_million(share: f64) -> anyhow::Result<u32> {
    if !(0.0..=1.0).contains(&share) {
        return Err(crate::exit::not_possible(format!(
            "--audit takes a share between 0 and 1, not {share}"
        )));
    }
    Ok((share * 1_000_000.0).round() as u32)
}
