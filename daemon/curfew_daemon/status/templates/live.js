'use strict';
// Asks for the page again each second and changes only the nodes that differ: no flicker, and neither a selection
// nor the focus nor a tooltip is lost. Asks nothing while nobody looks.
(() => {
  const note = document.getElementById('connection');
  const build = document.documentElement.dataset.build;
  let lastAnswer = Date.now();

  function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh);
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const [were, are] = [[...old.childNodes], [...fresh.childNodes]];
    are.forEach((child, place) => (place < were.length ? morph(were[place], child) : old.append(child)));
    were.slice(are.length).forEach((child) => child.remove());
  }

  function say(words) {
    if (note.textContent !== words) note.textContent = words;
    note.hidden = !words;
  }

  async function refresh() {
    if (document.hidden) return;
    try {
      const answer = await fetch(location.href, { cache: 'no-store', signal: AbortSignal.timeout(5000) });
      if (!answer.ok) throw new Error(answer.statusText);
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html');
      if (fresh.documentElement.dataset.build !== build) {
        location.reload();
        return;
      }
      morph(document.querySelector('main'), fresh.querySelector('main'));
      document.title = fresh.title;
      lastAnswer = Date.now();
      say('');
    } catch {
      const since = new Date(lastAnswer).toISOString().slice(11, 19);
      say(`This daemon no longer answers. Below is what it last said, at ${since} UTC.`);
    }
  }

  async function forever() {
    await refresh();
    setTimeout(forever, 1000);
  }

  document.addEventListener('visibilitychange', refresh);
  setTimeout(forever, 1000);
})();
