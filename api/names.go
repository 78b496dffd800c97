package api

import (
	"math/rand/v2"
	"strings"
)

// Words of the names that services get when their creator gives none.
const (
	nameFirst  = "amber bold brisk calm clever copper coral crisp dapper eager early fair fleet gentle glad golden grand green happy humble jolly keen kind lively lucky mellow merry mild neat noble polite proud quick quiet ready silver smart snug solid steady sunny swift tidy vivid warm wise witty young"
	nameSecond = "acorn alder anchor beacon birch bridge brook canyon cedar cliff clover comet crane delta ember falcon fern finch forest garden glade harbor hazel heron island juniper lagoon lantern larch maple meadow mill nest oak orchard otter pebble pine prairie quarry raven reef ridge river robin sail shore sparrow spruce summit thistle tide valley willow wren"
)

// randomName makes a name such as calm_harbor. It may be taken already.
func randomName() string {
	return randomWord(nameFirst) + "_" + randomWord(nameSecond)
}

func randomWord(words string) string {
	list := strings.Fields(words)
	return list[rand.IntN(len(list))]
}
