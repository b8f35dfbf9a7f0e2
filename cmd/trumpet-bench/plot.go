package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
	"time"
)

// bars is a plot of groups of bars on a logarithmic axis, as an SVG that follows the reader's light
// or dark theme.
type bars struct {
	title, axis string
	series      []string // each has a class of its own: s0, s1, …
	groups      []group
}

type group struct {
	name   string
	values []float64 // as many as there are series
}

const (
	plotWidth, plotHeight         = 760, 396
	plotLeft, plotTop, plotBottom = 64, 100, 44
)

const plotStyle = `<style>
text { font: 13px system-ui, sans-serif; fill: #3b3629 } .title { font-size: 15px; font-weight: 600 }
.paper { fill: #fffefb } .grid { stroke: #d8d2c4 } .axis { stroke: #8d8574 }
.s0 { fill: #2c7434 } .s1 { fill: #7fbf84 } .s2 { fill: #b3261e } .s3 { fill: #e48a83 }
@media (prefers-color-scheme: dark) { text { fill: #d8d4ca } .paper { fill: #14171b } .grid { stroke: #33383f } .axis { stroke: #8d929a }
.s0 { fill: #5fb565 } .s1 { fill: #b7e0ba } .s2 { fill: #ff8b80 } .s3 { fill: #ffc6c0 } }
</style>
`

// String draws it.
func (p bars) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", plotWidth, plotHeight, html.EscapeString(p.title))
	b.WriteString(plotStyle + `<rect class="paper" width="100%" height="100%"/>` + "\n")
	fmt.Fprintf(&b, `<text class="title" x="%d" y="22">%s</text>`+"\n", plotLeft, html.EscapeString(p.title))
	x := plotLeft
	for i, name := range p.series {
		fmt.Fprintf(&b, `<rect class="s%d" x="%d" y="38" width="12" height="12" rx="2"/><text x="%d" y="49">%s</text>`+"\n", i, x, x+18, html.EscapeString(name))
		x += 40 + 7*len(name)
	}
	decades := 1
	for _, g := range p.groups {
		for _, v := range g.values {
			decades = max(decades, int(math.Ceil(math.Log10(max(v, 1)))))
		}
	}
	floor := float64(plotHeight - plotBottom)
	// One decade's height below 1 is for values that are less, and for none at all.
	each := (floor - plotTop) / (float64(decades) + 0.5)
	y := func(v float64) float64 {
		if v <= 0 {
			return floor
		}
		return min(floor, floor-each*(math.Log10(v)+0.5))
	}
	for d := range decades + 1 {
		at := y(math.Pow10(d))
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			plotLeft, plotWidth-12, at, at, plotLeft-8, at+4, thousands(math.Pow10(d)))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text>`+"\n", plotLeft, plotTop-24, html.EscapeString(p.axis))
	wide := float64(plotWidth-12-plotLeft) / float64(max(1, len(p.groups)))
	bar := min(48, wide*0.8/float64(max(1, len(p.series))))
	for i, g := range p.groups {
		middle := plotLeft + wide*(float64(i)+0.5)
		for s, v := range g.values {
			left := middle + bar*(float64(s)-float64(len(g.values))/2)
			top := min(y(v), floor-2)
			fmt.Fprintf(&b, `<rect class="s%d" x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="2"/><text x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n",
				s, left+1.5, top, bar-3, floor-top, left+bar/2, top-5, thousands(v))
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", middle, plotHeight-plotBottom+22, html.EscapeString(g.name))
	}
	fmt.Fprintf(&b, `<line class="axis" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`+"\n</svg>\n", plotLeft, plotWidth-12, floor, floor)
	return b.String()
}

// thousands writes a rounded number with its thousands set apart.
func thousands(v float64) string {
	if v > 0 && v < 10 && v != math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	text := strconv.Itoa(int(math.Round(v)))
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func ratio(v float64) string  { return strconv.FormatFloat(v, 'f', 2, 64) }
func tenths(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

func milliseconds(d time.Duration) float64 { return float64(d) / 1e6 }

// dashboardPlot draws queries per minute by number of dashboards.
func dashboardPlot(table []situation) string {
	p := bars{
		title:  "Queries a minute that dashboards cost Postgres",
		axis:   "queries/min on the tables (logarithmic)",
		series: []string{"live, at rest", "live, changing", "polling, at rest", "polling, changing"},
	}
	byClients := make(map[int]int)
	for _, s := range table {
		i, ok := byClients[s.clients]
		if !ok {
			i = len(p.groups)
			byClients[s.clients] = i
			p.groups = append(p.groups, group{fmt.Sprintf("%s dashboards", thousands(float64(s.clients))), make([]float64, len(p.series))})
		}
		for n, name := range p.series {
			if name == s.way {
				p.groups[i].values[n] = s.cost.perMinute(s.cost.onTables)
			}
		}
	}
	return p.String()
}
