//! Checks of water marks.

use crate::error::{Error, Result};
use crate::proto;
use crate::watch::{TransportLimits, WaterMarks};

/// Checks water marks; `None` means those of the configuration.
pub(in crate::rpc) fn water_marks(
    limits: TransportLimits,
    field: &str,
    given: Option<&proto::WaterMarks>,
) -> Result<WaterMarks> {
    let Some(given) = given else {
        return Ok(WaterMarks::of(limits));
    };
    let most = limits.write_buffer;
    let bytes = |name: &str, given: u64, most: usize, what: &str| {
        let checked = usize::try_from(given).ok().filter(|bytes| *bytes <= most);
        checked.ok_or_else(|| {
            let allowed = format!("must be at most {what}, {most} bytes");
            Error::invalid(format!("{field}.{name}"), allowed)
        })
    };
    let buffer = "the configuration's [limits] write_buffer";
    let low = given
        .low_bytes
        .map(|low| bytes("low_bytes", low, most, buffer))
        .transpose()?;
    let high = match (given.high_bytes, low) {
        (Some(high), _) => bytes("high_bytes", high, most, buffer)?,
        // As asyncio's set_write_buffer_limits has it.
        (None, Some(low)) => most.min(low.saturating_mul(4)),
        (None, None) => limits.high_water,
    };
    let mut marks = WaterMarks::with_high(high);
    if let Some(low) = low {
        let low = bytes("low_bytes", low as u64, high, "the high mark")?;
        marks.low = u32::try_from(low).unwrap_or(marks.high);
    }
    Ok(marks)
}
