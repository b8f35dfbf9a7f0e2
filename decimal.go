package trumpet

import (
	"bytes"
	"cmp"
)

// decimal is a number of any length, as slices of its text, so that comparing
// numbers makes no copies.
type decimal struct {
	class decimalClass
	// The digits before the point without leading zeros, and those behind it
	// without trailing ones. Both are empty for zero.
	whole, fraction []byte
}

// decimalClass orders numbers that are not of one class.
type decimalClass int8

const (
	minusInfinity decimalClass = iota - 2
	negative
	zero
	positive
	plusInfinity
	notANumber
)

// maxExponent bounds what 1e1000 is written out to. Postgres's numeric goes further;
// nobody filters there.
const maxExponent = 1000

func (d *decimal) compare(other *decimal) int {
	if d.class != other.class {
		return cmp.Compare(d.class, other.class)
	}
	switch d.class {
	case positive:
		return d.compareDigits(other)
	case negative:
		return other.compareDigits(d)
	default:
		return 0
	}
}

func (d *decimal) compareDigits(other *decimal) int {
	if c := cmp.Compare(len(d.whole), len(other.whole)); c != 0 {
		return c
	}
	if c := bytes.Compare(d.whole, other.whole); c != 0 {
		return c
	}
	return bytes.Compare(d.fraction, other.fraction)
}

// appendText appends the number as short as it can be: one text for equal numbers.
func (d *decimal) appendText(dst []byte) []byte {
	switch d.class {
	case notANumber:
		return append(dst, "NaN"...)
	case plusInfinity:
		return append(dst, "Infinity"...)
	case minusInfinity:
		return append(dst, "-Infinity"...)
	case negative:
		dst = append(dst, '-')
	}
	if len(d.whole) == 0 {
		dst = append(dst, '0')
	}
	dst = append(dst, d.whole...)
	if len(d.fraction) > 0 {
		dst = append(append(dst, '.'), d.fraction...)
	}
	return dst
}

// parseDecimal reads a number: digits with a sign, a point and an exponent. It makes
// a copy only if there is an exponent, which Postgres never writes for its exact
// types.
func parseDecimal(text []byte) (d decimal, ok bool) {
	d.class = positive
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		if text[0] == '-' {
			d.class = negative
		}
		text = text[1:]
	}
	mantissa, exponent := text, 0
	if i := bytes.IndexAny(text, "eE"); i >= 0 {
		mantissa = text[:i]
		if exponent, ok = parseExponent(text[i+1:]); !ok {
			return decimal{}, false
		}
	}
	d.whole = mantissa
	if i := bytes.IndexByte(mantissa, '.'); i >= 0 {
		d.whole, d.fraction = mantissa[:i], mantissa[i+1:]
	}
	if len(d.whole)+len(d.fraction) == 0 || !isDigits(d.whole) || !isDigits(d.fraction) {
		return decimal{}, false
	}
	if exponent != 0 {
		d.shift(exponent)
	}
	d.whole, d.fraction = bytes.TrimLeft(d.whole, "0"), bytes.TrimRight(d.fraction, "0")
	if len(d.whole)+len(d.fraction) == 0 {
		d = decimal{class: zero}
	}
	return d, true
}

// shift moves the point by n digits to the right.
func (d *decimal) shift(n int) {
	zeros := func(n int) []byte { return bytes.Repeat([]byte("0"), max(n, 0)) }
	digits := append(zeros(-n), d.whole...)
	digits = append(digits, d.fraction...)
	digits = append(digits, zeros(n)...)
	point := len(d.whole) + max(n, 0)
	if n < 0 {
		point = len(d.whole) // the zeros before it are n
	}
	d.whole, d.fraction = digits[:point], digits[point:]
}

func parseExponent(text []byte) (n int, ok bool) {
	sign := 1
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		if text[0] == '-' {
			sign = -1
		}
		text = text[1:]
	}
	if len(text) == 0 || !isDigits(text) {
		return 0, false
	}
	for _, c := range text {
		if n = n*10 + int(c-'0'); n > maxExponent {
			return 0, false
		}
	}
	return sign * n, true
}

// parseDecimalName reads what Postgres writes for numbers that are none.
func parseDecimalName(text []byte) (d decimal, ok bool) {
	switch string(text) {
	case "NaN":
		return decimal{class: notANumber}, true
	case "Infinity":
		return decimal{class: plusInfinity}, true
	case "-Infinity":
		return decimal{class: minusInfinity}, true
	}
	return decimal{}, false
}

func isDigits(text []byte) bool {
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}
