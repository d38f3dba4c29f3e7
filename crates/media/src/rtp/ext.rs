//! Header extensions: the general form, and the one-byte and two-byte elements inside it.

/// A header extension.
///
/// ```text
/// |      defined by profile       |      length in 32-bit words   |
/// |                        header extension                       |
/// ```
///
/// Source: RFC 3550 section 5.3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Number that names the form: `0xBEDE` one-byte, `0x100x` two-byte (RFC 8285), `0xABAC` ONVIF.
    pub profile: u16,
    /// The body, a multiple of 4 bytes.
    pub data: &'a [u8],
}

impl<'a> Extension<'a> {
    /// Reads the extension at the start of `bytes`; `None` when it is longer than `bytes`.
    #[inline]
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (&[p0, p1, l0, l1], rest) = bytes.split_first_chunk::<4>()?;
        let data = rest.get(..4 * usize::from(u16::from_be_bytes([l0, l1])))?;
        Some(Self { profile: u16::from_be_bytes([p0, p1]), data })
    }

    /// Bytes that the extension takes in the packet, its own header included.
    #[inline]
    pub fn wire_len(&self) -> usize {
        4 + self.data.len()
    }

    /// The elements of a one-byte or two-byte extension; none for another profile.
    pub fn elements(&self) -> ExtensionElements<'a> {
        let form = match self.profile {
            0xBEDE => Form::OneByte,
            0x1000..=0x100F => Form::TwoByte,
            _ => Form::Opaque,
        };
        ExtensionElements { data: self.data, form }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    OneByte,
    TwoByte,
    Opaque,
}

/// Iterator over `(id, value)` of a header extension. Stops at the first element that does not fit.
///
/// Source: RFC 8285 sections 4.2 and 4.3.
#[derive(Debug, Clone)]
pub struct ExtensionElements<'a> {
    data: &'a [u8],
    form: Form,
}

impl<'a> Iterator for ExtensionElements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&first, rest) = self.data.split_first()?;
            if self.form == Form::Opaque {
                return None;
            }
            if first == 0 {
                self.data = rest; // padding
                continue;
            }
            let (id, len, body) = match self.form {
                Form::OneByte if first >> 4 == 15 => return None, // reserved: stop
                Form::OneByte => (first >> 4, usize::from(first & 0x0f) + 1, rest),
                _ => {
                    let (&len, body) = rest.split_first()?;
                    (first, usize::from(len), body)
                }
            };
            let (value, tail) = body.split_at_checked(len)?;
            self.data = tail;
            return Some((id, value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(profile: u16, data: &[u8]) -> Vec<(u8, Vec<u8>)> {
        Extension { profile, data }.elements().map(|(id, value)| (id, value.to_vec())).collect()
    }

    #[test]
    fn one_byte_elements_are_read_over_padding() {
        let data = [0x10, 0xff, 0, 0, 0x21, 1, 2, 0];
        assert_eq!(elements(0xBEDE, &data), [(1, vec![0xff]), (2, vec![1, 2])]);
    }

    #[test]
    fn two_byte_elements_may_be_empty() {
        assert_eq!(elements(0x1000, &[5, 0, 6, 1, 9, 0, 0, 0]), [(5, vec![]), (6, vec![9])]);
    }

    #[test]
    fn reserved_id_and_truncated_element_end_the_list() {
        assert_eq!(elements(0xBEDE, &[0xf0, 1, 0x10, 1]), []);
        assert_eq!(elements(0xBEDE, &[0x13, 1, 2, 3]), []);
        assert_eq!(elements(0x1000, &[5, 200, 0, 0]), []);
    }

    #[test]
    fn onvif_replay_extension_is_opaque() {
        assert_eq!(elements(0xABAC, &[1; 12]), []);
    }
}
