package demo

import "math/rand/v2"

type trade int

const (
	heating trade = iota
	plumbing
	electrics
)

// technicians and what they do.
var technicians = []struct {
	name  string
	trade trade
}{
	{"Amir Haddad", heating}, {"Beth Lockwood", heating}, {"Callum Reid", heating}, {"Ewa Nowak", heating},
	{"Dan Oakley", plumbing}, {"Fiona Marr", plumbing}, {"Jamal Edwards", plumbing}, {"Lucy Tan", plumbing},
	{"Marcus Bell", electrics}, {"Priya Nair", electrics}, {"Rhys Morgan", electrics}, {"Sophie Lang", electrics},
}

// kind is a kind of job: what is called in, how urgent it is, and what it costs.
type kind struct {
	trade     trade
	title     string
	priority  int
	low, high int // price, in whole pounds
}

var kinds = []kind{
	{heating, "Boiler lost pressure overnight", 1, 95, 180},
	{heating, "No heating on the first floor", 1, 110, 260},
	{heating, "Boiler makes a banging noise", 2, 90, 240},
	{heating, "Annual boiler service", 3, 85, 120},
	{heating, "Landlord gas safety check", 3, 75, 95},
	{heating, "Radiators cold at the bottom: power flush", 2, 380, 560},
	{heating, "Replace thermostatic valves, six radiators", 3, 210, 320},
	{heating, "Fit a smart thermostat", 3, 160, 240},
	{heating, "Hot water runs cold after two minutes", 2, 120, 290},
	{heating, "Heat pump shows error E9", 1, 140, 360},
	{heating, "Bleed and balance radiators", 3, 70, 110},
	{heating, "Quote for a new combi boiler", 3, 0, 0},
	{heating, "Flue leaks into the loft", 1, 180, 340},
	{plumbing, "Water through the kitchen ceiling", 1, 120, 380},
	{plumbing, "Burst pipe under the sink", 1, 110, 220},
	{plumbing, "Blocked drain in the yard", 2, 95, 190},
	{plumbing, "Toilet runs all the time", 3, 65, 115},
	{plumbing, "Kitchen tap drips", 3, 60, 95},
	{plumbing, "Replace the shower mixer", 2, 180, 290},
	{plumbing, "Low pressure on the upper floor", 2, 85, 210},
	{plumbing, "Connect a dishwasher", 3, 80, 120},
	{plumbing, "Descale and service the water softener", 3, 110, 150},
	{plumbing, "Stopcock will not close", 2, 90, 160},
	{plumbing, "Legionella check of the hot water tank", 2, 190, 260},
	{plumbing, "Move the washroom basin", 3, 280, 440},
	{plumbing, "Grease trap overflows", 1, 150, 280},
	{electrics, "Half the sockets are dead", 1, 95, 230},
	{electrics, "Fuse box trips when the oven is on", 1, 110, 260},
	{electrics, "Emergency lighting test", 2, 140, 190},
	{electrics, "Periodic inspection and report", 3, 180, 320},
	{electrics, "Replace the consumer unit", 2, 480, 720},
	{electrics, "Outdoor lights flicker in the rain", 2, 90, 170},
	{electrics, "Fit LED panels in the office", 3, 240, 460},
	{electrics, "Install a car charger, 7 kW", 3, 780, 980},
	{electrics, "Extractor fan has stopped", 2, 85, 160},
	{electrics, "Smoke alarms chirp and will not stop", 2, 70, 130},
	{electrics, "Add two double sockets", 3, 130, 190},
	{electrics, "Portable appliance test, 40 items", 3, 120, 160},
	{electrics, "Burning smell from a light switch", 1, 95, 180},
}

// price is what a job of this kind may cost.
func (k kind) price(rng *rand.Rand) int {
	if k.high == 0 {
		return 0 // a quote is free
	}
	return k.low + 5*rng.IntN((k.high-k.low)/5+1)
}

// tradeOf is the trade that a job's title tells. A title that somebody typed may be anybody's.
func tradeOf(title string, rng *rand.Rand) trade {
	for _, k := range kinds {
		if k.title == title {
			return k.trade
		}
	}
	return trade(rng.IntN(3))
}

// announcements are what the office sends to everybody now and then.
var announcements = []string{
	"Vans 4 and 7 are back from the garage.",
	"Ring road closed at Sheepscar until 15:00: allow twenty minutes more.",
	"Spare parts for the Vela boilers have come in; collect at the depot.",
	"Snow above 250 m this evening. Fit winter tyres before late visits.",
	"Please photograph every gas meter you touch, from today.",
	"The Harrogate depot has no stock of 22 mm fittings until tomorrow.",
	"Two customers praised us by name this morning. Well done, all.",
	"Fire drill at the Leeds office at 14:30; the lines are closed for ten minutes.",
	"New price list is in force; old quotes stay valid for thirty days.",
	"Water supplier works in York city centre: low pressure is expected until 17:00.",
}
