// Scrolls to a new answer, and sets the opacity of the map. Gradio runs this as the body of a function in which
// `element` and `watch` are defined.

watch('value', () => {
  const { top, bottom } = element.getBoundingClientRect();
  if (top > window.innerHeight - 200 || bottom < 200) element.scrollIntoView({ block: 'start' });
});
element.addEventListener('input', (event) => {
  if (!event.target.matches('input[type=range]')) return;
  element.querySelector('.answer').style.setProperty('--opacity', event.target.value / 100);
  element.querySelector('.percent').textContent = event.target.value + '%';
});
