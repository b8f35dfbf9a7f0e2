package trumpet

import (
	"fmt"
	"math"
)

// Dates and times are counted as Postgres counts them: days and microseconds from
// 2000 on, in the calendar that has no gap. So the range is the same, and fits.
const (
	future       = math.MaxInt64 // infinity
	past         = math.MinInt64 // -infinity
	second       = 1_000_000
	minute       = 60 * second
	hour         = 60 * minute
	day          = 24 * hour
	firstDay     = -2451545               // 4713-11-24 BC
	endDay       = 2147483494 - 2451545   // 5874898-01-01
	endTimestamp = 9223371331200 * second // 294277-01-01
	endTimeDay   = endTimestamp / day
	microsDigits = 6
)

// parseTicks reads a date or a time as ISO 8601 and Postgres write it. What is of
// another kind is not ok: a date as a time, or a zone where there is none.
// Timestamps may be dates, and those with time zone may leave the zone out: UTC.
func parseTicks(text []byte, kind Kind) (ticks int64, ok bool) {
	p := ticksParser{rest: text}
	switch {
	case kind == KindTime:
		ticks, ok = p.clock(24)
		return ticks, ok && len(p.rest) == 0
	case string(text) == "infinity":
		return future, true
	case string(text) == "-infinity":
		return past, true
	}
	year, month, dayOfMonth, ok := p.date()
	if !ok {
		return 0, false
	}
	var clock, zone int64
	if kind != KindDate && p.take('T', ' ') {
		if len(p.rest) > 0 && p.rest[0] == 'B' { // the blank was that before BC
			p.rest = text[len(text)-len(p.rest)-1:]
		} else {
			if clock, ok = p.clock(23); !ok {
				return 0, false
			}
			if kind == KindTimestampTZ {
				if zone, ok = p.zone(); !ok {
					return 0, false
				}
			}
		}
	}
	if string(p.rest) == " BC" {
		p.rest, year = nil, 1-year
	}
	if len(p.rest) > 0 {
		return 0, false
	}
	days := daysOf(year, month, dayOfMonth)
	if _, _, d := dateOf(days); d != dayOfMonth {
		return 0, false // 30 February
	}
	if kind == KindDate {
		return days, firstDay <= days && days < endDay
	}
	if days < firstDay-1 || days > endTimeDay {
		return 0, false // what follows could overflow
	}
	ticks = days*day + clock - zone
	return ticks, firstDay*day <= ticks && ticks < endTimestamp
}

// ticksParser takes its parts off the front of a text.
type ticksParser struct{ rest []byte }

// take takes one of two bytes.
func (p *ticksParser) take(a, b byte) bool {
	if len(p.rest) == 0 || p.rest[0] != a && p.rest[0] != b {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// digits takes a number of at least and at most so many digits.
func (p *ticksParser) digits(least, most int) (n int64, count int) {
	for count < most && count < len(p.rest) && '0' <= p.rest[count] && p.rest[count] <= '9' {
		n = n*10 + int64(p.rest[count]-'0')
		count++
	}
	p.rest = p.rest[count:]
	if count < least {
		return 0, 0
	}
	return n, count
}

// two takes two digits that are at most the limit.
func (p *ticksParser) two(limit int64) (n int64, ok bool) {
	n, count := p.digits(2, 2)
	return n, count == 2 && n <= limit
}

func (p *ticksParser) date() (year, month, dayOfMonth int64, ok bool) {
	year, count := p.digits(4, 7)
	if count == 0 || year == 0 || !p.take('-', '-') {
		return 0, 0, 0, false
	}
	month, ok = p.two(12)
	if !ok || month == 0 || !p.take('-', '-') {
		return 0, 0, 0, false
	}
	dayOfMonth, ok = p.two(31)
	return year, month, dayOfMonth, ok && dayOfMonth > 0
}

// clock takes 12:34, 12:34:56 or 12:34:56.789. With the limit 24 also 24:00:00,
// which Postgres has as a time.
func (p *ticksParser) clock(limit int64) (ticks int64, ok bool) {
	h, ok := p.two(limit)
	if !ok || !p.take(':', ':') {
		return 0, false
	}
	m, ok := p.two(59)
	if !ok {
		return 0, false
	}
	ticks = h*hour + m*minute
	if p.take(':', ':') {
		s, ok := p.two(59)
		if !ok {
			return 0, false
		}
		ticks += s * second
		if p.take('.', '.') {
			fraction, count := p.digits(1, microsDigits)
			if count == 0 {
				return 0, false
			}
			for range microsDigits - count {
				fraction *= 10
			}
			ticks += fraction
		}
	}
	return ticks, ticks <= day
}

// zone takes nothing, Z, +01, +01:30, -0130 or +01:30:15.
func (p *ticksParser) zone() (ticks int64, ok bool) {
	if p.take('Z', 'z') || len(p.rest) == 0 || p.rest[0] == ' ' {
		return 0, true
	}
	sign := int64(1)
	if p.rest[0] == '-' {
		sign = -1
	}
	if !p.take('+', '-') {
		return 0, false
	}
	h, ok := p.two(15)
	if !ok {
		return 0, false
	}
	ticks = h * hour
	for _, unit := range []int64{minute, second} {
		colon := p.take(':', ':')
		if !colon && (len(p.rest) == 0 || p.rest[0] == ' ') {
			break
		}
		n, ok := p.two(59)
		if !ok {
			return 0, false
		}
		ticks += n * unit
	}
	return sign * ticks, true
}

// daysOf counts days from 2000-01-01 on; year 0 is 1 BC. A day that the month does not
// have counts into the next one.
func daysOf(year, month, dayOfMonth int64) int64 {
	if month <= 2 { // years begin in March, so that the leap day is the last
		year--
		month += 12
	}
	era := floorDiv(year, 400)
	yearOfEra := year - era*400
	dayOfYear := (153*(month-3)+2)/5 + dayOfMonth - 1
	return era*146097 + yearOfEra*365 + yearOfEra/4 - yearOfEra/100 + dayOfYear - 730425
}

// dateOf is the other way round.
func dateOf(days int64) (year, month, dayOfMonth int64) {
	days += 730425
	era := floorDiv(days, 146097)
	dayOfEra := days - era*146097
	yearOfEra := (dayOfEra - dayOfEra/1460 + dayOfEra/36524 - dayOfEra/146096) / 365
	dayOfYear := dayOfEra - (365*yearOfEra + yearOfEra/4 - yearOfEra/100)
	m := (5*dayOfYear + 2) / 153
	dayOfMonth = dayOfYear - (153*m+2)/5 + 1
	year, month = era*400+yearOfEra, m+3
	if month > 12 {
		year, month = year+1, month-12
	}
	return year, month, dayOfMonth
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// formatTicks writes what parseTicks reads as row_to_json does, in UTC.
func formatTicks(ticks int64, kind Kind) string {
	clock := func(t int64) string {
		s := fmt.Sprintf("%02d:%02d:%02d", t/hour, t/minute%60, t/second%60)
		fraction := fmt.Sprintf(".%06d", t%second)
		for fraction[len(fraction)-1] == '0' {
			fraction = fraction[:len(fraction)-1]
		}
		if fraction == "." {
			return s
		}
		return s + fraction
	}
	switch {
	case kind == KindTime:
		return clock(ticks)
	case ticks == future:
		return "infinity"
	case ticks == past:
		return "-infinity"
	}
	days := ticks
	if kind != KindDate {
		days = floorDiv(ticks, day)
	}
	year, month, dayOfMonth := dateOf(days)
	era := ""
	if year <= 0 {
		year, era = 1-year, " BC"
	}
	s := fmt.Sprintf("%04d-%02d-%02d", year, month, dayOfMonth)
	if kind != KindDate {
		s += "T" + clock(ticks-days*day)
	}
	if kind == KindTimestampTZ {
		s += "+00:00"
	}
	return s + era
}
