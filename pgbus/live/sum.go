package live

import (
	"math/big"
	"strings"
)

// sum is an exact sum of decimal numbers: unscaled / 10^scale.
type sum struct {
	unscaled big.Int
	scale    int // the largest of what was ever added
}

var ten = big.NewInt(10)

func powerOfTen(n int) *big.Int { return new(big.Int).Exp(ten, big.NewInt(int64(n)), nil) }

// add adds a number as Postgres writes it, digits with at most one point, n times; false if it is none.
func (s *sum) add(number string, n int64) bool {
	digits, fraction, pointed := strings.Cut(number, ".")
	if pointed && (fraction == "" || strings.Trim(fraction, "0123456789") != "") {
		return false
	}
	var value big.Int
	if _, ok := value.SetString(digits+fraction, 10); !ok {
		return false
	}
	switch scale := len(fraction); {
	case scale > s.scale:
		s.unscaled.Mul(&s.unscaled, powerOfTen(scale-s.scale))
		s.scale = scale
	case scale < s.scale:
		value.Mul(&value, powerOfTen(s.scale-scale))
	}
	if n != 1 {
		value.Mul(&value, big.NewInt(n))
	}
	s.unscaled.Add(&s.unscaled, &value)
	return true
}

// trimmed is the number without zeros at its end.
func (s *sum) trimmed() (unscaled *big.Int, scale int) {
	unscaled, scale = new(big.Int).Set(&s.unscaled), s.scale
	var quotient, rest big.Int
	for scale > 0 {
		if quotient.QuoRem(unscaled, ten, &rest); rest.Sign() != 0 {
			break
		}
		unscaled.Set(&quotient)
		scale--
	}
	return unscaled, scale
}

// equal reports whether both are the same number.
func (s *sum) equal(other *sum) bool {
	a, aScale := s.trimmed()
	b, bScale := other.trimmed()
	return aScale == bScale && a.Cmp(b) == 0
}

// appendText appends the sum with so many digits behind the point; -1 for those that it needs.
func (s *sum) appendText(dst []byte, scale int) []byte {
	unscaled, has := s.trimmed()
	if scale < 0 {
		return appendDecimal(dst, unscaled, has)
	}
	if scale > has {
		unscaled.Mul(unscaled, powerOfTen(scale-has))
		has = scale
	}
	return appendDecimal(dst, unscaled, has)
}

func appendDecimal(dst []byte, unscaled *big.Int, scale int) []byte {
	digits := new(big.Int).Abs(unscaled).String()
	if unscaled.Sign() < 0 {
		dst = append(dst, '-')
	}
	if pad := scale + 1 - len(digits); pad > 0 {
		digits = strings.Repeat("0", pad) + digits
	}
	dst = append(dst, digits[:len(digits)-scale]...)
	if scale > 0 {
		dst = append(append(dst, '.'), digits[len(digits)-scale:]...)
	}
	return dst
}

// appendAverage appends the sum divided by count, with as many digits as Postgres gives: at least 16
// significant ones, counted in groups of four, as numeric is stored. scale is as in appendText.
func (s *sum) appendAverage(dst []byte, count int64, scale int) []byte {
	unscaled, has := s.trimmed()
	weight, first := leadingGroup(unscaled, has)
	divisor := big.NewInt(count)
	countWeight, countFirst := leadingGroup(divisor, 0)
	quotientWeight := weight - countWeight
	if first <= countFirst {
		quotientWeight--
	}
	digits := min(max(16-4*quotientWeight, has, scale, 0), 1000)
	// Rounded half away from zero.
	var quotient, rest big.Int
	unscaled.Mul(unscaled, powerOfTen(max(digits-has, 0)))
	quotient.QuoRem(unscaled, divisor, &rest)
	if rest.Abs(&rest).Lsh(&rest, 1).Cmp(divisor) >= 0 {
		quotient.Add(&quotient, big.NewInt(int64(unscaled.Sign())))
	}
	if scale < 0 {
		trim := sum{unscaled: quotient, scale: digits}
		return trim.appendText(dst, -1)
	}
	return appendDecimal(dst, &quotient, digits)
}

// leadingGroup returns where the first group of four decimal digits stands that is not zero, in groups
// before the point, and its value.
func leadingGroup(unscaled *big.Int, scale int) (weight, value int) {
	if unscaled.Sign() == 0 {
		return 0, 0
	}
	digits := new(big.Int).Abs(unscaled).String()
	exponent := len(digits) - scale - 1 // of the first digit
	weight = exponent / 4
	if exponent%4 < 0 {
		weight--
	}
	for i := range exponent - 4*weight + 1 {
		value *= 10
		if i < len(digits) {
			value += int(digits[i] - '0')
		}
	}
	return weight, value
}
