package pgbus

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/trumpet-realtime/trumpet"
)

// signatureLength is the length in characters of a signature: 128 bits of HMAC-SHA256.
const signatureLength = 32

var (
	errUnsigned = errors.New("notification without a valid signature")
	errLine     = errors.New("malformed line")
)

// sign puts the signature's line before body, as trumpet.notify_lines does.
func sign(secret []byte, body string) string {
	return signature(secret, body) + "\n" + body
}

func signature(secret []byte, body string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))[:signatureLength]
}

// verify returns what stands below a valid signature.
func verify(secret []byte, payload string) (body string, err error) {
	if len(payload) <= signatureLength || payload[signatureLength] != '\n' {
		return "", errUnsigned
	}
	body = payload[signatureLength+1:]
	if !hmac.Equal([]byte(payload[:signatureLength]), []byte(signature(secret, body))) {
		return "", errUnsigned
	}
	return body, nil
}

// record is one record of the log as trumpet.line writes it.
type record struct {
	position    int64
	tag         uint32
	id          int64 // trumpet.record.id
	lastOrdinal int32
	more        bool // further records of the same transaction follow
	at          time.Time
	op          trumpet.Op
	statement   trumpet.Op
	rows        int64
	topic       string
	key         [][]byte // the key columns' names as JSON strings, quotes included
	before      json.RawMessage
	after       json.RawMessage
	data        json.RawMessage

	// stub: only position and tag are here, the rest is in the log.
	// upTo: only position is here: read the log up to it.
	stub, upTo bool
}

func (r *record) lastID() trumpet.EventID {
	return trumpet.EventID{Position: r.position, Ordinal: r.lastOrdinal, Tag: r.tag}
}

// fieldCount is how many tab-separated fields a whole line has.
const fieldCount = 14

// parseLine reads one line without its line feed: a whole record, a stub (position and
// tag), or a position alone. It copies what it keeps.
func parseLine(line []byte) (record, error) {
	fields := bytes.Split(line, []byte{'\t'})
	if len(fields) != 1 && len(fields) != 2 && len(fields) != fieldCount {
		return record{}, fmt.Errorf("%w: %d fields", errLine, len(fields))
	}
	var (
		r   record
		err error
	)
	if r.position, err = parseCount(fields[0], math.MaxInt64); err != nil || r.position == 0 {
		return record{}, fmt.Errorf("%w: position %q", errLine, fields[0])
	}
	if len(fields) == 1 {
		r.upTo = true
		return r, nil
	}
	tag, err := strconv.ParseUint(string(fields[1]), 16, 32)
	if err != nil || len(fields[1]) != 8 {
		return record{}, fmt.Errorf("%w: tag %q", errLine, fields[1])
	}
	r.tag = uint32(tag)
	if len(fields) == 2 {
		r.stub = true
		return r, nil
	}
	return r, r.parseContent(fields)
}

func (r *record) parseContent(fields [][]byte) error {
	var err error
	if r.id, err = parseCount(fields[2], math.MaxInt64); err != nil {
		return fmt.Errorf("%w: id %q", errLine, fields[2])
	}
	lastOrdinal, err := parseCount(fields[3], math.MaxInt32)
	if err != nil {
		return fmt.Errorf("%w: last ordinal %q", errLine, fields[3])
	}
	r.lastOrdinal = int32(lastOrdinal)
	switch string(fields[4]) {
	case "0":
	case "1":
		r.more = true
	default:
		return fmt.Errorf("%w: more %q", errLine, fields[4])
	}
	micros, err := parseCount(fields[5], 253402300799999999) // the last microsecond of 9999
	if err != nil {
		return fmt.Errorf("%w: at %q", errLine, fields[5])
	}
	r.at = time.UnixMicro(micros).UTC()
	if r.op, err = parseOp(fields[6]); err != nil {
		return err
	}
	if len(fields[7]) > 0 {
		if r.statement, err = parseOp(fields[7]); err != nil {
			return err
		}
	}
	if r.rows, err = parseCount(fields[8], math.MaxInt64); err != nil {
		return fmt.Errorf("%w: rows %q", errLine, fields[8])
	}
	if err := json.Unmarshal(fields[9], &r.topic); err != nil || r.topic == "" {
		return fmt.Errorf("%w: topic %q", errLine, fields[9])
	}
	if r.key, err = splitArray(bytes.Clone(fields[10])); err != nil {
		return fmt.Errorf("%w: key: %w", errLine, err)
	}
	for i, target := range []*json.RawMessage{&r.before, &r.after, &r.data} {
		field := fields[11+i]
		if len(field) == 0 {
			continue
		}
		if !json.Valid(field) {
			return fmt.Errorf("%w: field %d is not JSON", errLine, 11+i)
		}
		*target = bytes.Clone(field)
	}
	return nil
}

func parseCount(b []byte, limit int64) (int64, error) {
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil || n < 0 || n > limit {
		return 0, errLine
	}
	return n, nil
}

func parseOp(b []byte) (trumpet.Op, error) {
	switch op := trumpet.Op(b); op {
	case trumpet.OpInsert, trumpet.OpUpdate, trumpet.OpDelete, trumpet.OpTruncate, trumpet.OpBulk, trumpet.OpBroadcast, trumpet.OpResult:
		return op, nil
	}
	return "", fmt.Errorf("%w: operation %q", errLine, b)
}
