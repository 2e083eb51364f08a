//! Pictures of displays.

use jpeg_encoder::{ColorType, Encoder};

use crate::Error;

/// Of a screen of text, sharp enough to read.
const QUALITY: u8 = 85;

/// A PPM image (`P6`, 8 bits a colour, as QEMU writes it) as JPEG.
pub(crate) fn jpeg(ppm: &[u8]) -> Result<Vec<u8>, Error> {
    let unreadable = || Error::Inconsistent("the picture of a display cannot be read".to_owned());
    let (width, height, pixels) = parse(ppm).ok_or_else(unreadable)?;
    let mut jpeg = Vec::new();
    Encoder::new(&mut jpeg, QUALITY).encode(pixels, width, height, ColorType::Rgb).map_err(|error| {
        Error::Inconsistent(format!("the picture of a display cannot be encoded: {error}"))
    })?;
    Ok(jpeg)
}

/// Width, height and pixels.
fn parse(ppm: &[u8]) -> Option<(u16, u16, &[u8])> {
    let mut rest = ppm.strip_prefix(b"P6")?;
    let mut number = || {
        let begin = rest.iter().position(|byte| !byte.is_ascii_whitespace())?;
        let length = rest[begin..].iter().position(|byte| !byte.is_ascii_digit())?;
        let text = std::str::from_utf8(&rest[begin..begin + length]).ok()?;
        rest = &rest[begin + length..];
        text.parse::<u16>().ok()
    };
    let (width, height, depth) = (number()?, number()?, number()?);
    let size = 3 * usize::from(width) * usize::from(height);
    // One byte of white space stands before the pixels.
    let pixels = rest.get(1..1 + size)?;
    (depth == 255 && size > 0).then_some((width, height, pixels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_read_and_encoded() {
        let mut ppm = b"P6\n16 8\n255\n".to_vec();
        ppm.extend([200; 16 * 8 * 3]);
        let (width, height, pixels) = parse(&ppm).unwrap();
        assert_eq!((width, height, pixels.len()), (16, 8, 384));
        let jpeg = jpeg(&ppm).unwrap();
        assert_eq!((&jpeg[..3], &jpeg[jpeg.len() - 2..]), (&[0xff, 0xd8, 0xff][..], &[0xff, 0xd9][..]));
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        for text in
            [&b""[..], b"P5\n1 1\n255\nx", b"P6\n2 2\n255\nxxx", b"P6\n0 0\n255\n", b"P6\n1 1\n65535\nxxx"]
        {
            assert!(jpeg(text).is_err());
        }
    }
}
